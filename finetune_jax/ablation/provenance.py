"""Where a result comes from: config file, command and versions of libraries."""

from __future__ import annotations

from typing import Any

import ml_collections

from finetune_jax import config as config_lib
from finetune_jax.files import digest
from finetune_jax.identity import versions
from finetune_jax.portable import portable


def provenance(path: str, config: ml_collections.ConfigDict, command: str) -> dict[str, Any]:
    """``config``, ``config_hash`` (16 hex digits), ``command`` and ``versions`` of a result.

    Args:
      path: path of the config file.
      config: config that the file returned, with overrides applied.
      command: command line that produced the result.
    """
    return {
        "config": path,
        "config_hash": config_hash(config),
        "command": command,
        "versions": versions(),
    }


def config_hash(config: ml_collections.ConfigDict) -> str:
    """16 hex digits that identify a config, wherever its files are (`portable`)."""
    return digest(portable(config_lib.to_json(config)))[:16]

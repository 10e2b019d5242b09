"""Where a result comes from: config file, command and versions of libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from typing import Any

import ml_collections

from finetune_jax import config as config_lib

_LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def provenance(path: str, config: ml_collections.ConfigDict, command: str) -> dict[str, Any]:
    """``config``, ``config_hash`` (16 hex digits), ``command`` and ``versions`` of a result.

    Args:
      path: path of the config file.
      config: config that the file returned, with overrides applied.
      command: command line that produced the result.
    """
    text = json.dumps(config_lib.to_json(config), sort_keys=True)
    return {
        "config": path,
        "config_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "command": command,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": sys.version.split()[0], **libraries}

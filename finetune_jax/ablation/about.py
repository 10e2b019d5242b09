"""What a result has to say of where it comes from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from typing import Any

import ml_collections

from finetune_jax import config as config_lib

_LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def about(path: str, config: ml_collections.ConfigDict, command: str) -> dict[str, Any]:
    """``config``, ``config_hash``, ``command`` and ``versions``.

    Args:
      path: of the config file.
      config: what it gave, with overrides.
      command: that was run.
    """
    text = json.dumps(config_lib.to_json(config), sort_keys=True)
    return {
        "config": path,
        "config_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "command": command,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that results depend on."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": sys.version.split()[0], **found}

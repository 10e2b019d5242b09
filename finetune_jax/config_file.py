"""Writes a config as a Python file that returns the same config."""

from __future__ import annotations

from pathlib import Path

import ml_collections

from finetune_jax import config as config_lib
from finetune_jax.errors import UserError


def write(path: Path, config: ml_collections.ConfigDict, rest: str = "") -> None:
    """Writes a file whose ``get_config`` returns `config`.

    Args:
      path: the file, which ends in ``.py``; a file with the same text is left as it is.
      config: the config.
      rest: text at the end of the file, such as ``get_study``.

    Raises:
      UserError: another name, a folder that does not exist, or another file of this name.
    """
    if path.suffix != ".py" or not path.absolute().parent.is_dir():
        raise UserError(f"--save_config={path}: expected FILE.py in a folder that exists")
    text = as_text(config) + rest
    if path.exists() and path.read_text() != text:
        raise UserError(f"--save_config={path}: this file exists and is another; choose a new name")
    path.write_text(text)


def as_text(config: ml_collections.ConfigDict) -> str:
    """The text of the file: every key that is not at its default."""
    default = config_lib.default()
    own, other = (
        ml_collections.ConfigDict(config_lib.to_json(values)) for values in (config, default)
    )
    changed = [key for key in config_lib.keys(config) if own[key] != other[key]]
    lines = "\n".join(f"    config.{key} = {config[key]!r}" for key in changed)
    what = f"{config.model.name} on {config.data.source}".replace("\\", "/").replace('"', "'")
    return (
        f'"""Fine-tunes {what}. All keys: finetune-jax train --help=config."""\n\n'
        "from finetune_jax.config import default\n\n\n"
        f"def get_config():\n    config = default()\n{lines}\n    return config\n"
    )

"""Opens a weight file of any known format, told by its suffix."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.safetensors_file import open_safetensors
from finetune_jax.pretrained.torch_file import open_torch
from finetune_jax.pretrained.weights import Weights

_OPENERS: dict[str, Callable[[Path], Weights]] = {
    ".safetensors": open_safetensors,
    ".th": open_torch,
    ".pt": open_torch,
    ".pth": open_torch,
    ".bin": open_torch,
}


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Opens a weight file without reading its values and without running any code it holds.

    Args:
      path: a ``.safetensors`` file, or a PyTorch file (``.th``, ``.pt``, ``.pth``, ``.bin``).

    Raises:
      UserError: the file is missing, empty, truncated or of another format than its suffix says.
    """
    path = Path(path)
    if path.suffix not in _OPENERS:
        known = ", ".join(_OPENERS)
        raise UserError(f"{path}: unknown weight format {path.suffix!r}; expected one of {known}")
    if not path.exists():
        folder = path.parent
        files = folder.iterdir() if folder.is_dir() else ()
        beside = sorted(p.name for p in files if p.suffix in _OPENERS)
        where = nearest(path.name, beside) if beside else f" The folder {folder} holds none."
        raise UserError(f"{path}: no such weight file.{where}")
    if not path.is_file():
        raise UserError(f"{path}: expected a weight file, found a folder or a device")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the weight file is empty (0 bytes)")
        return _OPENERS[path.suffix](path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error

"""Weight files as flat named arrays: one reader per format, chosen by the file's suffix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.torch_file import read_torch

_SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Returns every tensor of a weight file by its name.

    Raises:
      UserError: no such file, an unknown suffix, or a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent
        siblings = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        where = nearest(path.name, siblings) if siblings else f" The folder {folder} is not there."
        raise UserError(f"pretrained.path: no such file {str(path)!r}.{where}")
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UserError(
            f"{path}: unknown weight format {path.suffix!r}.{nearest(path.suffix, _READERS)}"
        )
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    return reader(path)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads ``.safetensors``; bfloat16 comes back as `ml_dtypes.bfloat16`."""
    import safetensors

    try:
        pairs = safetensors.deserialize(path.read_bytes())
        arrays = {}
        for name, info in pairs:
            if info["dtype"] not in _SAFETENSORS_DTYPES:
                raise UserError(f"{path}: tensor {name!r} has unsupported dtype {info['dtype']}")
            dtype = _SAFETENSORS_DTYPES[info["dtype"]]
            arrays[name] = np.frombuffer(info["data"], dtype).reshape(info["shape"])
        return arrays
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged, truncated or not safetensors ({error})") from None


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """The file's own ``__metadata__`` strings."""
    import safetensors

    with safetensors.safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file that is either complete or not there; arrays in name order."""
    from safetensors.numpy import save

    content = save(
        {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)},
        metadata=dict(metadata or {}),
    )
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def read_json(path: Path) -> dict:
    """Reads a JSON object; raises UserError naming the file if it is not one."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": read_safetensors,
    **dict.fromkeys((".th", ".pt", ".pth", ".bin"), read_torch),
}

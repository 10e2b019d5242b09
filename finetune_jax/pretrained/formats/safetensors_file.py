"""The safetensors format: a JSON header with names, dtypes and offsets, then raw values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import DTYPES, MAX_HEADER_BYTES, file_errors, parse_json
from finetune_jax.pretrained.formats.weights import Spec, Weights

_DTYPES = {
    "F64": DTYPES["float64"],
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "I64": DTYPES["int64"],
    "I32": DTYPES["int32"],
    "I16": DTYPES["int16"],
    "I8": DTYPES["int8"],
    "U64": DTYPES["uint64"],
    "U32": DTYPES["uint32"],
    "U16": DTYPES["uint16"],
    "U8": DTYPES["uint8"],
    "BOOL": DTYPES["bool"],
    "F8_E4M3": DTYPES["float8_e4m3fn"],
    "F8_E5M2": DTYPES["float8_e5m2"],
}


def open_safetensors(path: Path) -> Weights:
    """Opens a safetensors file; raises UserError if it is damaged or has another format."""
    header, start = _read_header(path)
    try:
        # The library checks that the tensors fill the file without gap or overlap.
        with safe_open(path, framework="numpy") as checked:
            names = list(checked.keys())
            metadata = checked.metadata()
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a complete safetensors file; copy or download it again ({error})"
        ) from error
    specs: dict[str, Spec] = {}
    for name in names:
        dtype = header[name]["dtype"]
        if dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise UserError(f"{path}: tensor {name!r} has dtype {dtype}; expected one of {known}")
        specs[name] = (tuple(header[name]["shape"]), _DTYPES[dtype])
    file = path.open("rb", buffering=0)

    def read(name: str) -> np.ndarray:
        # The library's memory map would keep a second copy of every page that was read.
        shape, dtype = specs[name]
        file.seek(start + header[name]["data_offsets"][0])
        # The buffer is a Python object: NumPy requests huge pages for its buffers, whose allocation
        # on a virtual machine can take several times as long as the read.
        size = math.prod(shape) * dtype.itemsize
        content = file.read(size)
        while len(content) < size:  # the system reads at most 2 GiB at once
            more = file.read(size - len(content))
            if not more:
                raise UserError(f"{path}: tensor {name!r} cannot be read: the file ends within it")
            content += more
        return np.frombuffer(content, dtype).reshape(shape)

    return Weights(path, specs, read, file.close, metadata=metadata)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Returns (the header, offset of the values)."""
    with path.open("rb") as file, file_errors(path, "safetensors file"):
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise UserError(
                f"the file has {size} bytes, and its header alone would have {length}: the file is "
                f"truncated, damaged or of another format"
            )
        if length > MAX_HEADER_BYTES:
            raise UserError(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
        # parse_json refuses repeated names, of which the library would silently use the last.
        return parse_json(file.read(length)), 8 + length


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, which replaces an older file only after it is complete.

    Raises UserError for another suffix, or if the folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"{path}: expected a file to write, found a folder; name a file in it, such as "
            f"{path / 'model.safetensors'}"
        )
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: weights are written as .safetensors, which torch, timm and transformers "
            f"read, too; expected {path.with_suffix('.safetensors').name}, found {path.suffix!r}"
        )
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; create it first")
    # The library writes the buffer and ignores strides, so a transposed view would be wrong.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        # Written here with the mode of the umask; the library would set the mode 0600.
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file(ordered, unfinished, metadata=dict(metadata))
        unfinished.chmod(mode)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the weights cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)

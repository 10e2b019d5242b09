"""The safetensors format: a JSON header of names, dtypes and offsets, then raw values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from finetune_jax.errors import UserError
from finetune_jax.pretrained.weights import Spec, Weights

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def open_safetensors(path: Path) -> Weights:
    """Opens a safetensors file; raises UserError if it is damaged or of another format."""
    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error
    specs: dict[str, Spec] = {}
    for name in file.keys():  # noqa: SIM118 - the handle is no mapping
        view = file.get_slice(name)
        if view.get_dtype() not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise UserError(
                f"{path}: tensor {name!r} has dtype {view.get_dtype()}; expected one of {known}"
            )
        specs[name] = (tuple(view.get_shape()), _DTYPES[view.get_dtype()])

    def read(name: str) -> np.ndarray:
        try:
            return file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path}: tensor {name!r} cannot be read: {error}") from error

    return Weights(path, specs, read, lambda: file.__exit__(None, None, None))


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file: whole at `path`, or not at all; an older file stays until then.

    Raises UserError if the suffix is another or the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: native weights are saved as .safetensors, not {path.suffix!r}")
    # The library writes memory as it lies, so a transposed view would be saved wrongly.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        save_file(ordered, unfinished, metadata=dict(metadata))
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the weights cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)

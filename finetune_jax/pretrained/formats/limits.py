"""Limits for all weight files, which are checked before any memory is allocated.

The limits are far above every published checkpoint. A file that exceeds a limit is damaged or
hostile.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from finetune_jax.errors import UserError

MAX_TENSORS = 200_000
MAX_NAME_LENGTH = 2_000  # characters
MAX_DIMENSIONS = 32
MAX_DEPTH = 64  # nested dicts or groups
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library, kept for every header
MAX_SHARDS = 1_000
# Compressed values may grow to this multiple of the file's size, or to the second number of bytes,
# which a small file with a few arrays of zeros needs.
MAX_INFLATION = 100
MAX_INFLATION_FLOOR = 2**24

_NAMES = (
    "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64 "
    "complex128 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"
)
# Every dtype that a tensor may have; strings, dates, records and objects are refused.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in _NAMES.split()
}

# Names under which a checkpoint stores the state of its optimizer.
_OPTIMIZER = re.compile(
    r"(opt|optimizer|optimizer_state|optimizer_weights|states)/(?!target/).*"
    r"|([^/]+/)?opt_state(/.*)?"
    # The counter of torch's AveragedModel.
    r"|(.*\.)?n_averaged"
    # torch's optimizers, whose slots have the names of parameters or numbers; TensorFlow's slots.
    r"|(.*\.)?(optimizer|optimizers|optim|optimizer_states?|optimizer_state_dict)\..*"
    r"|.*[./](exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|square_avg)"
    r"|.*/(adam_[mv]|Adam(_1)?|AdamWeightDecayOptimizer(_1)?|Momentum|RMSProp(_1)?)"
)


def is_optimizer(name: str) -> bool:
    """Whether a name, joined by '/' or '.', belongs to an optimizer and not to a model.

    ``opt/target/…`` and ``optimizer/target/…`` do not, because the optimizers of old Flax stored
    the model's parameters there.
    """
    return _OPTIMIZER.fullmatch(name) is not None


def inflated(file_bytes: int) -> int:
    """Largest number of bytes to which a file of `file_bytes` bytes may decompress."""
    return max(MAX_INFLATION * file_bytes, MAX_INFLATION_FLOOR)


def size_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Number of bytes of an array, exact for any shape."""
    return math.prod(shape) * dtype.itemsize


def check_specs(specs: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    """Raises UserError, without the file's name, if names, shapes or dtypes exceed the limits."""
    if len(specs) > MAX_TENSORS:
        raise UserError(f"holds {len(specs)} tensors; at most {MAX_TENSORS} are read")
    for name, (shape, dtype) in specs.items():
        if len(name) > MAX_NAME_LENGTH:
            raise UserError(
                f"tensor {name[:40]!r}… has a name of {len(name)} characters; at most "
                f"{MAX_NAME_LENGTH} are read"
            )
        if dtype.name not in DTYPES:
            raise UserError(f"tensor {name!r} has dtype {dtype}; expected a number or bool")
        check_shape(name, shape, dtype)


def check_shape(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises UserError for a shape that no array can have."""
    if any(type(size) is not int or size < 0 for size in shape):
        raise UserError(f"tensor {name!r} has a size that is no count")
    if len(shape) > MAX_DIMENSIONS:
        raise UserError(f"tensor {name!r} has {len(shape)} axes; at most {MAX_DIMENSIONS} are read")
    # NumPy multiplies all nonzero sizes.
    if any(size > sys.maxsize for size in shape) or (
        size_of(tuple(size or 1 for size in shape), dtype) > sys.maxsize
    ):
        raise UserError(f"tensor {name!r} has a shape beyond all memory")


def check_fits(name: str, shape: tuple[int, ...], dtype: np.dtype, room: int) -> None:
    """Raises UserError for a tensor that needs more than `room` bytes."""
    check_shape(name, shape, dtype)
    if size_of(shape, dtype) > room:
        raise UserError(
            f"tensor {name!r} {dtype}{list(shape)} needs {size_of(shape, dtype)} bytes, and the "
            f"file can hold at most {room}: damaged or hostile"
        )


@contextmanager
def file_errors(path: Path, kind: str) -> Iterator[None]:
    """Turns every exception of the block into a UserError that names the file.

    Parsers of the standard library and of C libraries may raise any exception for a damaged file.
    """
    try:
        yield
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: not a readable {kind}: {str(error):.3000}") from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise UserError(f"{path}: not a readable {kind}: {text:.300}") from error


def parse_json(data: bytes | bytearray) -> dict[str, Any]:
    """Parses a JSON object; raises UserError for anything else, and for a repeated key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                raise UserError(f"the key {key[:100]!r} is given twice")
            entries[key] = value
        return entries

    if len(data) > MAX_HEADER_BYTES:
        raise UserError(f"JSON of {len(data)} bytes; at most {MAX_HEADER_BYTES} are read")
    try:
        content = json.loads(data, object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object, found a {type(content).__name__}")
    return content

"""The header of a NumPy array file: shape, dtype and order, all of which are checked."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import DTYPES, check_shape, size_of

_MAX_HEADER = 10_000


class NpyHeader(NamedTuple):
    """The header of an array file.

    Attributes:
      shape: shape of the array.
      dtype: dtype in this machine's byte order, or a dtype of texts (kind U or S).
      stored: dtype of the bytes in the file, perhaps with the other byte order.
      fortran: whether the first axis varies fastest.
      begin: offset of the values in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stored: np.dtype
    fortran: bool
    begin: int


def read_npy_header(name: str, stream: BinaryIO, length: int) -> NpyHeader:
    """Reads the header of an array file, and checks that the values fill the rest of the file.

    ``|V2``, two bytes without a type, is read as bfloat16, because NumPy writes bfloat16 so.

    Args:
      name: name of the tensor, for messages.
      stream: the file, at its begin.
      length: number of bytes of the file.

    Raises:
      UserError: the file is damaged, has an array of objects (which would be pickled code) or of
        records, or has another number of bytes than the shape needs.
    """
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise UserError(f"tensor {name!r} has .npy version {version}; expected 1.0 or 2.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, stored = read(stream, max_header_size=_MAX_HEADER)
    except UserError:
        raise
    except Exception as error:  # NumPy parses it as Python source, so any exception is possible
        raise UserError(
            f"tensor {name!r} has a damaged .npy header: {type(error).__name__}: {str(error):.300}"
        ) from error
    begin = stream.tell()
    if stored.hasobject:
        raise UserError(
            f"tensor {name!r} is an array of Python objects, which would be pickled code and is "
            "never read"
        )
    if stored == np.dtype("V2"):
        dtype = stored = DTYPES["bfloat16"]
    elif stored.kind in "US":
        dtype = stored
    else:
        dtype = stored.newbyteorder("=")
        if stored.names or stored.subdtype or dtype.name not in DTYPES:
            raise UserError(
                f"tensor {name!r} has dtype {stored}; expected a number, bool or bfloat16 (|V2)"
            )
    check_shape(name, shape, dtype)
    if size_of(shape, stored) != length - begin:
        raise UserError(
            f"tensor {name!r} declares {stored}{list(shape)}, {size_of(shape, stored)} bytes, and "
            f"{length - begin} bytes follow"
        )
    return NpyHeader(shape, dtype, stored, fortran, begin)


def arrange(data: bytearray, header: NpyHeader) -> np.ndarray:
    """The array of a file's values, in C order and in this machine's byte order."""
    # bfloat16 has no byte order in NumPy.
    flat = np.frombuffer(data, header.stored)
    if header.dtype != ml_dtypes.bfloat16:
        flat = flat.astype(header.dtype, copy=False)
    array = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return np.asarray(array, order="C")

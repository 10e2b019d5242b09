"""Flax ``.msgpack`` checkpoints, which are parsed without building their arrays.

The file is a nest of maps. An array is extension 1 (a NumPy scalar: 3) with ``(shape, dtype,
bytes)`` packed inside. An array above 1 GiB is a map of flat chunks (flax.serialization). The
parser only records the positions of the values, so that opening a file needs no memory, and checks
every length of the file before using it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import (
    DTYPES,
    MAX_DEPTH,
    MAX_NAME_LENGTH,
    MAX_TENSORS,
    check_shape,
    file_errors,
    is_optimizer,
    size_of,
)
from finetune_jax.pretrained.formats.weights import Weights

_CHUNKED = "__msgpack_chunked_array__"
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_KIND = "Flax msgpack file"


class _Array(NamedTuple):
    """An array: its shape and dtype, and the offset of its bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int


class _Chunks(NamedTuple):
    """An array whose elements are in several flat arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[_Array, ...]


def open_msgpack(path: Path) -> Weights:
    """Opens a Flax msgpack file. Nested names are joined by '/'; lists have the names '0', '1', ….

    An optimizer's state, and entries that are no arrays (a step, a text), are listed in
    `Weights.other_entries`.

    Raises UserError if the file is damaged or has another format.
    """
    with path.open("rb") as file, file_errors(path, _KIND):
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, _Array | _Chunks] = {}
    other_entries: dict[str, None] = {}
    try:
        with file_errors(path, _KIND):
            walker = _Walker(data)
            root = walker.value(0)
            if walker.at != len(data):
                raise UserError(f"{len(data) - walker.at} bytes follow its end")
            if not isinstance(root, dict):
                raise UserError("expected nested dicts of arrays at the top")
            for name, leaf in _leaves(root, ""):
                if name in arrays or name in other_entries:
                    raise UserError(f"two entries have the name {name!r:.200}")
                if isinstance(leaf, _Array | _Chunks) and not is_optimizer(name):
                    arrays[name] = leaf
                else:
                    other_entries[name] = None
    except BaseException:
        data.close()
        raise

    def copy(array: _Array) -> np.ndarray:
        flat = np.frombuffer(data, array.dtype, math.prod(array.shape), array.begin)
        return flat.copy().reshape(array.shape)  # a view would keep the map open

    def read(name: str) -> np.ndarray:
        found = arrays[name]
        if isinstance(found, _Array):
            return copy(found)
        flat = np.empty(sum(piece.shape[0] for piece in found.pieces), found.dtype)
        filled = 0
        for piece in found.pieces:
            flat[filled : filled + piece.shape[0]] = copy(piece)
            filled += piece.shape[0]
        return flat.reshape(found.shape)

    specs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    return Weights(path, specs, read, data.close, tuple(other_entries))


def _leaves(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if not isinstance(value, dict):
            yield name, value
        elif _CHUNKED in value:
            yield name, _chunked(name, value)
        else:
            yield from _leaves(value, f"{name}/")


def _chunked(name: str, node: dict[str, Any]) -> _Chunks:
    parts = {key: node.get(key) for key in ("shape", "chunks")}
    if any(
        not isinstance(part, dict) or list(part) != [str(i) for i in range(len(part))]
        for part in parts.values()
    ):
        raise UserError(f"tensor {name!r:.200} is in chunks without their shape and order")
    shape = tuple(parts["shape"].values())  # type: ignore[union-attr]  # checked above
    pieces = tuple(parts["chunks"].values())  # type: ignore[union-attr]  # checked above
    if not pieces or any(not isinstance(p, _Array) or len(p.shape) != 1 for p in pieces):
        raise UserError(f"tensor {name!r:.200} is in chunks that are no flat arrays")
    dtype = pieces[0].dtype
    check_shape(name, shape, dtype)
    held = sum(piece.shape[0] for piece in pieces)
    if any(piece.dtype != dtype for piece in pieces) or size_of(shape, dtype) != (
        held * dtype.itemsize
    ):
        raise UserError(
            f"tensor {name!r:.200} {dtype}{list(shape)} is in chunks of {held} elements in all"
        )
    return _Chunks(shape, dtype, pieces)


class _Walker:
    """Reads values from the position `at` on, and checks every length before using it."""

    def __init__(self, data: mmap.mmap, begin: int = 0, end: int | None = None) -> None:
        self._data, self.at = data, begin
        self._end = len(data) if end is None else end
        self._entries = 0

    def _take(self, count: int) -> int:
        """Moves `at` forward by `count` bytes; returns the position before the move."""
        if count > self._end - self.at:
            raise UserError(
                f"a value of {count} bytes at byte {self.at} exceeds the end at byte {self._end}: "
                "truncated or damaged"
            )
        begin, self.at = self.at, self.at + count
        return begin

    def _bytes(self, count: int) -> bytes:
        begin = self._take(count)
        return self._data[begin : begin + count]

    def _number(self, code: str) -> Any:
        return struct.unpack(f">{code}", self._bytes(struct.calcsize(code)))[0]

    def value(self, depth: int) -> Any:
        """Reads one value: a dict, the record of an array, or another type of msgpack."""
        if depth > MAX_DEPTH:
            raise UserError(f"it is nested deeper than {MAX_DEPTH}")
        tag = self._bytes(1)[0]
        if tag <= 0x7F:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag <= 0x8F:
            return self._map(tag & 0x0F, depth)
        if tag <= 0x9F:
            return self._list(tag & 0x0F, depth)
        if tag <= 0xBF:
            return self._text(tag & 0x1F)
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if tag in (0xC4, 0xC5, 0xC6):  # bytes, which are never a tensor
            self._take(self._number("BHI"[tag - 0xC4]))
            return b""
        if tag in (0xC7, 0xC8, 0xC9):
            return self._extension(self._number("BHI"[tag - 0xC7]))
        if 0xCA <= tag <= 0xD3:
            return self._number("fdBHIQbhiq"[tag - 0xCA])
        if 0xD4 <= tag <= 0xD8:
            return self._extension(1 << (tag - 0xD4))
        if tag in (0xD9, 0xDA, 0xDB):
            return self._text(self._number("BHI"[tag - 0xD9]))
        if tag in (0xDC, 0xDD):
            return self._list(self._number("HI"[tag - 0xDC]), depth)
        if tag in (0xDE, 0xDF):
            return self._map(self._number("HI"[tag - 0xDE]), depth)
        raise UserError(f"byte {self.at - 1} is {tag:#x}, with which no value begins")

    def _text(self, length: int) -> str:
        return self._bytes(length).decode("utf-8", "backslashreplace")

    def _count(self, count: int) -> None:
        # Every entry needs at least one byte.
        self._entries += count
        if self._entries > 4 * MAX_TENSORS or count > self._end - self.at:
            raise UserError(f"it has {self._entries} entries, or fewer bytes than entries")

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        self._count(count)
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise UserError(f"a key before byte {self.at} is no text")
            key = str(key)
            if len(key) > MAX_NAME_LENGTH or key in entries:
                raise UserError(f"the key {key[:100]!r} is given twice or too long")
            entries[key] = self.value(depth + 1)
        return entries

    def _list(self, count: int, depth: int) -> dict[str, Any]:
        self._count(count)
        return {str(i): self.value(depth + 1) for i in range(count)}

    def _extension(self, length: int) -> Any:
        kind = self._number("b")
        begin = self._take(length)
        if kind == _COMPLEX:
            return 0j
        if kind not in (_ARRAY, _SCALAR):
            raise UserError(f"byte {begin} begins an extension of type {kind}; expected an array")
        inner = _Walker(self._data, begin, begin + length)
        return inner.array()

    def array(self) -> _Array:
        """Reads the content of an array, (shape, dtype name, bytes), which must end at the end."""
        begin = self.at
        if self._bytes(1) != b"\x93":
            raise UserError(f"the array at byte {begin} is no triple of shape, dtype and bytes")
        shape = self.value(MAX_DEPTH - 1)
        name = self.value(MAX_DEPTH)
        if not isinstance(shape, dict) or not isinstance(name, str):
            raise UserError(f"the array at byte {begin} has no shape or no dtype")
        if name not in DTYPES:
            raise UserError(f"the array at byte {begin} has dtype {name!r:.50}; expected a number")
        dtype, sizes = DTYPES[name], tuple(shape.values())
        check_shape(f"at byte {begin}", sizes, dtype)
        # In old versions of msgpack, bytes have the tags of texts.
        tag = self._bytes(1)[0]
        widths = {0xC4: "B", 0xC5: "H", 0xC6: "I", 0xD9: "B", 0xDA: "H", 0xDB: "I"}
        if tag in widths:
            length = self._number(widths[tag])
        elif 0xA0 <= tag <= 0xBF:
            length = tag & 0x1F
        else:
            raise UserError(f"the array at byte {begin} has no bytes")
        values = self._take(length)
        if length != size_of(sizes, dtype) or self.at != self._end:
            raise UserError(
                f"the array at byte {begin} declares {name}{list(sizes)} and has {length} bytes of "
                f"values and {self._end - self.at} after them"
            )
        return _Array(sizes, dtype, values)

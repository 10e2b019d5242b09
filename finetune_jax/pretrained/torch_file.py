"""PyTorch files, read without torch: the zip container, and the one of torch 1.5 and older.

Zip: ``<name>/data.pkl`` describes the tensors, ``<name>/data/<key>`` holds each storage.
Old: five pickles (magic number, protocol, system, tensors, storage keys), then for every key its
count of elements (i64) and its values.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.torch_pickle import Storage, TensorRecord, load_pickle, shown
from finetune_jax.pretrained.weights import Spec, Weights

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict")
_MAX_DIMENSIONS = 32


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    """Puts the file's name before a message from deeper down."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: not a readable PyTorch file: {error}") from error


def open_torch(path: Path) -> Weights:
    """Opens a PyTorch file that holds a state dict, bare or under one of the usual keys.

    Raises UserError if it is damaged, holds no state dict, or asks to run code.
    """
    file = path.open("rb")
    try:
        with _blame(path):
            zipped = file.read(4) == b"PK\x03\x04"
            content, read_storage = (_read_zip if zipped else _read_old)(file)
            records, beside = _state_dict(content)
            specs = {name: _check(name, record) for name, record in records.items()}
    except BaseException:
        file.close()
        raise

    def read(name: str) -> np.ndarray:
        with _blame(path):
            record = records[name]
            try:
                elements = read_storage(record.storage)
            except UserError as error:
                raise UserError(f"tensor {name!r}: {error}") from error
            strides = [stride * elements.itemsize for stride in record.strides]
            tensor = np.lib.stride_tricks.as_strided(
                elements[record.offset :], record.shape, strides, writeable=False
            )
            return np.array(tensor, order="C")

    return Weights(path, specs, read, file.close, beside)


def _state_dict(content: Any) -> tuple[dict[str, TensorRecord], tuple[str, ...]]:
    """The tensors by name, and the names of the entries that are none."""
    if not isinstance(content, Mapping):
        raise UserError(f"expected a dict of tensors, found a {type(content).__name__}")

    def holds_tensors(value: Any) -> bool:
        return isinstance(value, Mapping) and any(
            isinstance(entry, TensorRecord) for entry in value.values()
        )

    nested = [key for key in _STATE_DICT_KEYS if holds_tensors(content.get(key))]
    if len(nested) > 1:
        raise UserError(f"more than one state dict: under {' and '.join(map(repr, nested))}")
    if not nested and not holds_tensors(content):
        raise UserError(
            f"no tensors at the top level nor under one of {', '.join(_STATE_DICT_KEYS)}; "
            f"found {', '.join(shown(key) for key in list(content)[:20]) or 'nothing'}."
        )
    beside = [shown(key) for key in content if key != nested[0]] if nested else []
    chosen = content[nested[0]] if nested else content
    records = {}
    for key, value in chosen.items():
        if not isinstance(value, TensorRecord):
            beside.append(f"{nested[0]}[{shown(key)}]" if nested else shown(key))
        elif isinstance(key, str):
            records[key] = value
        else:
            raise UserError(f"expected a tensor's name, found {shown(key)}")
    return records, tuple(beside)


def _check(name: str, record: TensorRecord) -> Spec:
    """Shape and dtype of a tensor that lies within its storage; raises UserError otherwise."""
    storage, offset, shape, strides = record
    if not isinstance(storage, Storage):
        raise UserError(f"tensor {name!r} has no storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise UserError(f"tensor {name!r} has shape {shown(shape)} and strides {shown(strides)}")
    numbers = (offset, *shape, *strides)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise UserError(f"tensor {name!r} has a size, stride or offset that is no count")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise UserError(f"tensor {name!r} has {len(shape)} sizes and {len(strides)} strides")
    elements = math.prod(shape)
    last = offset + sum((s - 1) * t for s, t in zip(shape, strides, strict=True))
    # As many elements as the storage at most: a stride of 0 could ask for any amount of memory.
    if elements and (last >= storage.count or elements > storage.count):
        raise UserError(
            f"tensor {name!r} of shape {shape}, strides {strides} and offset {offset} does not fit "
            f"its storage of {storage.count} elements"
        )
    # An empty tensor passes the above with any sizes; NumPy multiplies all but the zeros.
    if max(math.prod(size or 1 for size in shape), *numbers) * 8 > sys.maxsize:
        raise UserError(f"tensor {name!r} has a size, stride or offset beyond all memory")
    return shape, storage.dtype


def _elements(data: bytes, dtype: np.dtype, big_endian: bool) -> np.ndarray:
    """The bytes as a flat array in this machine's byte order."""
    # Swapped as unsigned integers, since bfloat16 has no byte order in NumPy.
    words = np.frombuffer(data, np.dtype(f"u{dtype.itemsize}"))
    if big_endian != (sys.byteorder == "big"):
        words = words.byteswap()
    return words.view(dtype)


_ReadStorage = Callable[[Storage], np.ndarray]


def _read_zip(file: BinaryIO) -> tuple[Any, _ReadStorage]:
    size = file.seek(0, io.SEEK_END)

    def read(name: str) -> bytes:
        # torch never compresses, so an entry can be no larger than the file.
        try:
            entry = archive.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise UserError(f"its entry {name!r} is compressed or larger than the file")
            return archive.read(entry)
        except KeyError:
            raise UserError(f"it has no entry {name!r}.{nearest(name, names)}") from None
        except UserError:
            raise
        except Exception as error:  # the standard library: a damaged archive may raise anything
            raise UserError(
                f"its entry {name!r} is damaged: {type(error).__name__}: {error}"
            ) from error

    try:
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
    except Exception as error:
        raise UserError(f"a truncated or damaged zip archive: {error}") from error
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(set(names)) != len(names):
        raise UserError("a zip archive without exactly one data.pkl, or with an entry twice")
    root = pickles[0].removesuffix("data.pkl")
    order = read(f"{root}byteorder").strip() if f"{root}byteorder" in names else b"little"
    if order not in (b"little", b"big"):
        raise UserError(f"its byte order is {order!r:.50}; expected little or big")

    def read_storage(storage: Storage) -> np.ndarray:
        data = read(f"{root}data/{storage.key}")
        end = (storage.start + storage.count) * storage.dtype.itemsize
        if len(data) < end:
            raise UserError(f"its storage {storage.key!r} has {len(data)} bytes; expected {end}")
        elements = _elements(data[:end], storage.dtype, order == b"big")
        return elements[storage.start :]

    return load_pickle(io.BytesIO(read(pickles[0]))), read_storage


def _read_old(file: BinaryIO) -> tuple[Any, _ReadStorage]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if load_pickle(file) != _MAGIC_NUMBER:
        raise UserError("it starts with a pickle that is not torch's magic number")
    version = load_pickle(file)
    if version != _PROTOCOL_VERSION:
        raise UserError(f"its protocol is {shown(version)}; expected {_PROTOCOL_VERSION}")
    system = load_pickle(file)
    big_endian = isinstance(system, Mapping) and system.get("little_endian") is False
    content = load_pickle(file)
    keys = load_pickle(file)
    if not isinstance(keys, list):
        raise UserError("its list of storages is missing")
    places: dict[str, tuple[int, int]] = {}

    # The width of an element stands in the pickle alone, so the storages are walked over once.
    widths: dict[str, int] = {}
    for storage in _storages(content):
        if widths.setdefault(storage.key, storage.dtype.itemsize) != storage.dtype.itemsize:
            raise UserError(f"its storage {storage.key!r:.100} is used with two dtypes")
    position = file.tell()
    for key in keys:
        if not isinstance(key, str) or key not in widths or key in places:
            raise UserError(f"its storage {shown(key)} belongs to no tensor, or comes twice")
        file.seek(position)
        header = file.read(8)
        count = int.from_bytes(header, "big" if big_endian else "little", signed=True)
        begin, position = position + 8, position + 8 + count * widths[key]
        if len(header) < 8 or count < 0 or position > size:
            raise UserError(
                f"its storage {key!r:.100} of {count} elements ends at byte {position} and the "
                f"file at {size}: truncated or damaged"
            )
        places[key] = (begin, count)

    def read_storage(storage: Storage) -> np.ndarray:
        if storage.key not in places:
            raise UserError(f"it has no storage {storage.key!r:.100}")
        begin, count = places[storage.key]
        if storage.start + storage.count > count:
            raise UserError(f"its storage {storage.key!r:.100} has only {count} elements")
        file.seek(begin + storage.start * storage.dtype.itemsize)
        data = file.read(storage.count * storage.dtype.itemsize)
        if len(data) < storage.count * storage.dtype.itemsize:
            raise UserError(f"its storage {storage.key!r:.100} is truncated")
        return _elements(data, storage.dtype, big_endian)

    return content, read_storage


def _storages(content: Any) -> Iterator[Storage]:
    """Every storage anywhere in the unpickled content, each container visited once."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Storage):
            yield value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, Mapping) else value)

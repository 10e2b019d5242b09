"""Reads PyTorch files without torch: zip files, and the format of torch 1.5 and older.

In a zip file, ``<name>/data.pkl`` describes the tensors and ``<name>/data/<key>`` holds a storage.
The old format has five pickles (magic number, protocol, system, tensors, storage keys), then for
every key the number of elements (i64) and the values.
"""

from __future__ import annotations

import io
import math
import mmap
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import MAX_DIMENSIONS, file_errors
from finetune_jax.pretrained.formats.torch_pickle import Storage, TensorRecord, load_pickle, shown
from finetune_jax.pretrained.formats.torch_state import choose_state_dict
from finetune_jax.pretrained.formats.weights import Spec, Weights
from finetune_jax.pretrained.formats.zip_archive import ZipArchive

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_KIND = "PyTorch file"
PLAIN_PICKLE = (
    "A pickle of arrays, as detectron2 has them, becomes a file that is read by: "
    "python -c \"import numpy, pickle; found = pickle.load(open('FILE.pkl', 'rb'), "
    "encoding='latin1'); numpy.savez('FILE.npz', **found.get('model', found))\". A pickle can run "
    "code: do this with files that you trust"
)
"""What to do with a pickle that torch has not written."""


def open_torch(path: Path, role: str = "") -> Weights:
    """Opens a PyTorch file with a state dict, at the top level or under a key.

    Args:
      path: the file.
      role: which of several state dicts; see `torch_state.choose_state_dict`.

    Raises UserError if the file is damaged, has no state dict, or needs pickled code.
    """
    with ExitStack() as stack, file_errors(path, _KIND):
        file = stack.enter_context(path.open("rb"))
        if file.read(4) == b"PK\x03\x04":
            archive = ZipArchive(path, compressed=False)  # torch never compresses
            stack.callback(archive.close)
            content, read_storage = _read_zip(archive)
        else:
            # A read from a file allocates as many bytes as a pickle requests; a map does not.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            stack.callback(mapped.close)
            content, read_storage = _read_old(mapped)
        found = choose_state_dict(content, role)
        records = found.records
        specs = {name: _check(name, record) for name, record in records.items()}
        close = stack.pop_all().close

    def read(name: str) -> np.ndarray:
        with file_errors(path, _KIND):
            record = records[name]
            try:
                elements = read_storage(record.storage)
            except UserError as error:
                raise UserError(f"tensor {name!r}: {error}") from error
            complete = record.offset == 0 and elements.size == math.prod(record.shape)
            if complete and record.strides == _contiguous(record.shape):
                return elements.reshape(record.shape)
            strides = [stride * elements.itemsize for stride in record.strides]
            tensor = np.lib.stride_tricks.as_strided(
                elements[record.offset :], record.shape, strides, writeable=False
            )
            return np.array(tensor, order="C")

    return Weights(
        path, specs, read, close, found.other_entries, sets=found.sets, chosen=found.chosen
    )


def _check(name: str, record: TensorRecord) -> Spec:
    """Shape and dtype of a tensor; raises UserError if the tensor exceeds its storage."""
    storage, offset, shape, strides = record
    if not isinstance(storage, Storage):
        raise UserError(f"tensor {name!r} has no storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise UserError(f"tensor {name!r} has shape {shown(shape)} and strides {shown(strides)}")
    numbers = (offset, *shape, *strides)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise UserError(f"tensor {name!r} has a size, stride or offset that is no count")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise UserError(f"tensor {name!r} has {len(shape)} sizes and {len(strides)} strides")
    # Python refuses to print integers of thousands of digits, which the message would contain.
    if max(storage.length, storage.start, *numbers) > sys.maxsize:
        raise UserError(f"tensor {name!r} has a size, stride or offset beyond all memory")
    elements = math.prod(shape)
    last = offset + sum((s - 1) * t for s, t in zip(shape, strides, strict=True))
    # At most as many elements as the storage has: strides of 0 could need any amount of memory.
    if elements and (last >= storage.length or elements > storage.length):
        raise UserError(
            f"tensor {name!r} of shape {shape}, strides {strides} and offset {offset} does not fit "
            f"its storage of {storage.length} elements"
        )
    # An empty tensor passes the check above with any sizes, and NumPy multiplies all nonzero sizes.
    if max(math.prod(size or 1 for size in shape), *numbers) * 8 > sys.maxsize:
        raise UserError(f"tensor {name!r} has a size, stride or offset beyond all memory")
    return shape, storage.dtype


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor in C order."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _elements(
    data: bytearray | memoryview | np.ndarray, dtype: np.dtype, big_endian: bool
) -> np.ndarray:
    """The bytes as a flat array in this machine's byte order."""
    # The bytes are swapped as unsigned integers, because bfloat16 has no byte order in NumPy.
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    words = np.frombuffer(data, np.dtype(f"u{width}"))
    if big_endian != (sys.byteorder == "big"):
        words = words.byteswap()
    return words.view(dtype)


_ReadStorage = Callable[[Storage], np.ndarray]


def _read_zip(archive: ZipArchive) -> tuple[Any, _ReadStorage]:
    names = archive.names()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError("a zip archive without exactly one data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise UserError("it is a TorchScript program; save its state_dict() instead")
    order = archive.read(f"{root}byteorder").strip() if f"{root}byteorder" in names else b"little"
    if order not in (b"little", b"big"):
        raise UserError(f"its byte order is {order!r:.50}; expected little or big")

    def read_storage(storage: Storage) -> np.ndarray:
        data = archive.read(f"{root}data/{storage.key}")
        end = (storage.start + storage.length) * storage.dtype.itemsize
        if len(data) < end:
            raise UserError(f"its storage {storage.key!r} has {len(data)} bytes; expected {end}")
        elements = _elements(memoryview(data)[:end], storage.dtype, order == b"big")
        return elements[storage.start :]

    return load_pickle(io.BytesIO(archive.read(pickles[0]))), read_storage


def _read_old(file: mmap.mmap) -> tuple[Any, _ReadStorage]:
    size = len(file)
    if load_pickle(file) != _MAGIC_NUMBER:
        raise UserError(
            "it starts with a pickle that is not torch's magic number: it was not written by "
            f"torch.save. {PLAIN_PICKLE}"
        )
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

    # Only the pickle has the width of an element, so all storages are visited first.
    widths: dict[str, int] = {}
    for storage in _storages(content):
        if widths.setdefault(storage.key, storage.dtype.itemsize) != storage.dtype.itemsize:
            raise UserError(f"its storage {storage.key!r:.100} is used with two dtypes")
    position = file.tell()
    for key in keys:
        if not isinstance(key, str) or key not in widths or key in places:
            raise UserError(f"its storage {shown(key)} belongs to no tensor, or is listed twice")
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
        if storage.start + storage.length > count:
            raise UserError(f"its storage {storage.key!r:.100} has only {count} elements")
        begin += storage.start * storage.dtype.itemsize
        data = np.frombuffer(file, np.uint8, storage.length * storage.dtype.itemsize, begin)
        return _elements(data.copy(), storage.dtype, big_endian)  # a copy, so the map can close

    return content, read_storage


def _storages(content: Any) -> Iterator[Storage]:
    """All storages in the unpickled content, at any depth; visits each container once."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Storage):
            yield value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, Mapping) else value)

"""PyTorch checkpoint files without PyTorch and without general unpickling.

A pickle is a program. This reader's unpickler resolves a short list of globals to stand-ins of its
own (ordered dict, tensor rebuild, storage types) and refuses every other one by name, so a file
cannot run code. Both containers are read: the zip of PyTorch 1.6 and later, and the one before it,
a sequence of pickles followed by raw storages.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from finetune_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")


class _StorageType:
    def __init__(self, name: str) -> None:
        self.dtype = _STORAGES[name]


class _Storage:
    """A storage whose bytes come later (legacy container) or at once (zip container)."""

    def __init__(self, key: str, dtype: np.dtype, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count
        self.data: np.ndarray | None = None


class _Tensor:
    def __init__(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def read(self) -> np.ndarray:
        data = self.storage.data
        if data is None:
            raise ValueError("its storage is missing from the file")
        numbers = (self.offset, *self.shape, *self.strides)
        if any(not isinstance(n, int) or n < 0 for n in numbers) or len(self.shape) != len(
            self.strides
        ):
            raise ValueError("malformed shape or strides")
        if 0 in self.shape:
            return np.zeros(self.shape, data.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        # A stride of 0 would let a small file declare an enormous tensor.
        if last >= len(data) or int(np.prod(self.shape, dtype=object)) > len(data):
            raise ValueError(f"shape {self.shape} reaches outside its storage of {len(data)}")
        steps = [s * data.dtype.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, steps)
        return np.ascontiguousarray(view)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_GLOBALS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path, storages: dict[str, _Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if module == "torch" and name in _STORAGES:
            return _StorageType(name)
        raise UserError(
            f"{self._path}: refused: its pickle asks for {module}.{name}; only tensors and plain "
            f"containers are read. Save the state_dict alone, or as .safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError("an unknown persistent id")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageType) or not isinstance(count, int):
            raise pickle.UnpicklingError("a malformed storage")
        if any(v is not None for v in view):
            raise pickle.UnpicklingError("storage views are not supported")
        return self._storages.setdefault(str(key), _Storage(str(key), kind.dtype, count))


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns the state dict of a ``.pt``, ``.pth``, ``.th`` or ``.bin`` file as numpy arrays.

    The state dict is the top-level dict, or the one under ``state_dict``, ``model_state_dict`` or
    ``model``; what is beside it (scores, epochs) is not a tensor and is passed over.

    Raises:
      UserError: naming the file, and the tensor where one is at fault.
    """
    try:
        root = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(
            f"{path}: damaged, truncated or not a PyTorch file ({type(error).__name__}: {error})"
        ) from None
    for key in _STATE_DICT_KEYS:
        if isinstance(root, dict) and isinstance(root.get(key), dict):
            root = root[key]
            break
    if not isinstance(root, dict):
        raise UserError(f"{path}: expected a state dict, found {type(root).__name__}")
    arrays = {}
    for name, value in root.items():
        if isinstance(value, _Tensor):
            try:
                arrays[str(name)] = value.read()
            except (ValueError, TypeError, OverflowError, MemoryError) as error:
                raise UserError(f"{path}: tensor {name!r}: {error}") from None
    if not arrays:
        raise UserError(f"{path}: holds no tensors")
    return arrays


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [n for n in names if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path}: a zip without one data.pkl is not a PyTorch file")
        prefix = pickles[0].removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in names and archive.read(order).strip() != b"little":
            raise UserError(f"{path}: big-endian files are not supported")
        storages: dict[str, _Storage] = {}
        root = _Unpickler(io.BytesIO(archive.read(pickles[0])), path, storages).load()
        for storage in storages.values():
            info = archive.getinfo(f"{prefix}data/{storage.key}")
            # PyTorch stores without compression, so a storage is never larger than the file.
            if info.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: compressed storages are not PyTorch's; refused")
            storage.data = np.frombuffer(archive.read(info), storage.dtype)
    return root


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        storages: dict[str, _Storage] = {}

        def load() -> Any:
            return _Unpickler(file, path, storages).load()

        if load() != _LEGACY_MAGIC:
            raise ValueError("wrong magic number")
        load()  # protocol version
        if not load().get("little_endian", True):
            raise UserError(f"{path}: big-endian files are not supported")
        root, keys = load(), load()
        size = path.stat().st_size
        for key in keys:
            storage = storages[str(key)]
            (count,) = struct.unpack("<q", file.read(8))
            length = count * storage.dtype.itemsize
            if count < 0 or length > size - file.tell():
                raise ValueError(f"storage {key!r} declares {count} values, beyond the file's end")
            storage.data = np.frombuffer(file.read(length), storage.dtype)
    return root

"""Writes PyTorch files without torch, with pickles that name fake modules."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
    np.dtype(np.complex64): "ComplexFloatStorage",
}


class Storage:
    """Flat values under a key; tensors may share one.

    `view`, in the old container: (key, first element, elements) of the part tensors refer to.
    """

    def __init__(
        self, key: str, values: np.ndarray, view: tuple[str, int, int] | None = None
    ) -> None:
        self.key, self.values, self.view = key, values, view


class Tensor:
    """A strided view of a storage; pickles as torch's tensors do."""

    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class OldTensor(Tensor):
    """A tensor in the pickle format of torch 0.3."""

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor, self.arguments[:4]


class Parameter:
    """A tensor inside torch's wrapper of parameters."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_parameter, (self.tensor, True, OrderedDict())


def tensor(key: str, array: np.ndarray) -> Tensor:
    """A contiguous tensor with a storage of its own."""
    strides = tuple(s // array.itemsize for s in np.ascontiguousarray(array).strides)
    return Tensor(Storage(key, array.ravel()), 0, array.shape, strides[: array.ndim])


@contextlib.contextmanager
def _fake_torch():
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *_: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    saved = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield torch
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _dump(content: Any, legacy: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    storages: dict[str, np.ndarray] = {}
    with _fake_torch() as torch:

        class Pickler(pickle.Pickler):
            def persistent_id(self, value: Any) -> Any:
                if not isinstance(value, Storage):
                    return None
                storages[value.key] = value.values
                kind = getattr(torch, _STORAGES[value.values.dtype])
                pid = ("storage", kind, value.key, "cpu", value.values.size)
                return (*pid, value.view) if legacy else pid

        out = io.BytesIO()
        Pickler(out, protocol=2).dump(content)
    return out.getvalue(), storages


def write_zip(path: Path, content: Any, byteorder: str = "little") -> None:
    """The container of torch 1.6 and later."""
    program, storages = _dump(content, legacy=False)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", byteorder)
        for key, values in storages.items():
            width = values.itemsize // 2 if values.dtype.kind == "c" else values.itemsize
            raw = values.view(f"u{width}")
            raw = raw.byteswap() if byteorder == "big" else raw
            archive.writestr(f"archive/data/{key}", raw.tobytes())
        archive.writestr("archive/version", "3\n")


def write_legacy(path: Path, content: Any) -> None:
    """The container of torch 1.5 and older."""
    program, storages = _dump(content, legacy=True)
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        sizes = {"short": 2, "int": 4, "long": 4}
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
        pickle.dump(system, file, protocol=2)
        file.write(program)
        pickle.dump(sorted(storages), file, protocol=2)
        for key in sorted(storages):
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())

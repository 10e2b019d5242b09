"""HDF5 files, walked with care: links, storage and sizes are checked before a value is read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.limits import DTYPES, MAX_DEPTH, MAX_TENSORS, check_fits
from finetune_jax.pretrained.weights import Spec

MAGIC = b"\x89HDF\r\n\x1a\n"
_MAX_ATTRIBUTE_BYTES = 2**26


def natural(name: str) -> list[Any]:
    """Sort key that puts ``vars/2`` before ``vars/10``."""
    return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)]


class Hdf5File:
    """The datasets of an HDF5 file by path, without their values.

    Args:
      source: a path, or a seekable binary file.
      size: bytes of it.

    Raises:
      UserError: a link to elsewhere, a dataset that is virtual, compressed, kept in other files,
        larger than the file, or of another dtype than numbers. Other exceptions of a damaged file
        are h5py's own.

    Attributes:
      specs: (shape, dtype) by the path of every dataset, in natural order.
      groups: paths of all groups.
    """

    def __init__(self, source: Path | BinaryIO, size: int) -> None:
        import h5py

        self._h5py = h5py
        self._size = size
        self.specs: dict[str, Spec] = {}
        self.groups: set[str] = set()
        # Locking needs a file system that can; the file is only read.
        options = {"locking": False} if isinstance(source, Path) else {}
        self._file = h5py.File(source, "r", **options)
        try:
            self._walk()
        except BaseException:
            self._file.close()
            raise
        self.specs = {name: self.specs[name] for name in sorted(self.specs, key=natural)}

    def _walk(self) -> None:
        h5py = self._h5py
        waiting: list[tuple[str, Any]] = [("", self._file)]
        seen = {_address(self._file)}
        while waiting:
            prefix, group = waiting.pop()
            for name in group:
                path = f"{prefix}{name}"
                if path.count("/") > MAX_DEPTH:
                    raise UserError(f"{path!r:.200} lies deeper than {MAX_DEPTH} groups")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise UserError(
                        f"{path!r} is a link to another place or file, which is not followed"
                    )
                item = group[name]
                if isinstance(item, h5py.Dataset):
                    self.specs[path] = self._check(path, item)
                elif isinstance(item, h5py.Group):
                    if _address(item) in seen:
                        raise UserError(f"group {path!r} is there under two names")
                    seen.add(_address(item))
                    self.groups.add(path)
                    waiting.append((f"{path}/", item))
                else:
                    raise UserError(f"{path!r} is neither a group nor a dataset")
                if len(self.specs) + len(self.groups) > MAX_TENSORS:
                    raise UserError(f"it has more than {MAX_TENSORS} groups and datasets")

    def _check(self, path: str, item: Any) -> Spec:
        layout = item.id.get_create_plist()
        if layout.get_layout() == self._h5py.h5d.VIRTUAL:
            raise UserError(f"dataset {path!r} is virtual: its values lie in other files")
        if layout.get_layout() == self._h5py.h5d.CONTIGUOUS and layout.get_external_count():
            raise UserError(f"dataset {path!r} keeps its values in other files")
        if layout.get_nfilters():
            raise UserError(
                f"dataset {path!r} is compressed or filtered, which no Keras file is; rewrite the "
                "file with h5repack -f NONE"
            )
        stored, shape = item.dtype, item.shape
        if shape is None:
            raise UserError(f"dataset {path!r} has no values")
        dtype = DTYPES["bfloat16"] if stored == np.dtype("V2") else stored.newbyteorder("=")
        if stored.hasobject or dtype.name not in DTYPES or stored.metadata:
            raise UserError(f"dataset {path!r} has dtype {stored}; expected numbers or bools")
        check_fits(path, shape, dtype, self._size)
        if item.chunks:
            check_fits(path, item.chunks, dtype, max(self._size, 2**20))
        return shape, dtype

    def read(self, path: str) -> np.ndarray:
        """The values of a dataset, C-ordered, in this machine's byte order."""
        shape, dtype = self.specs[path]
        values = np.asarray(self._file[path][()])
        if values.dtype.kind == "V":
            values = values.view(dtype)
        return np.asarray(values, dtype, order="C").reshape(shape)

    def has_attribute(self, group: str, name: str) -> bool:
        """Whether a group ('' for the root) has an attribute."""
        return name in self._file[f"/{group}"].attrs

    def text_attribute(self, group: str, name: str) -> str | None:
        """An attribute of a group that is one text; None if it is not there or is no text."""
        attributes = self._file[f"/{group}"].attrs
        if name not in attributes:
            return None
        found = attributes.get_id(name)
        if found.shape != () or found.get_storage_size() > _MAX_ATTRIBUTE_BYTES:
            return None
        value = attributes[name]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        return value if isinstance(value, str) else None

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()


def open_path(path: Path) -> Hdf5File:
    """Opens an HDF5 file on a disk."""
    return Hdf5File(path, os.path.getsize(path))


def _address(group: Any) -> Any:
    from h5py import h5o

    return h5o.get_info(group.id).addr

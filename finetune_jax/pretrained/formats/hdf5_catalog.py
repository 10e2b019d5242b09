"""Lists the positions of all datasets of an HDF5 file as JSON. A separate program, see `hdf5_file`.

The C library may hang or crash on a damaged file. Therefore this program imports no other module of
the project, and `hdf5_file` runs it with a time limit.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from typing import Any, BinaryIO

_MEMORY = 2**32  # limit of the address space in bytes
_TEXTS = ("name", "model_config")  # attributes whose text is returned
_MAX_TEXT = 2**26


class Refused(Exception):
    """Content that no weight file should have; the text is the message for the user."""


class _Region(io.RawIOBase):
    """A part of a file as a file object."""

    def __init__(self, file: BinaryIO, begin: int, size: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._begin + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def catalog(path: str, begin: int, size: int, max_entries: int, max_depth: int) -> dict[str, Any]:
    """Lists datasets, groups and attributes of the HDF5 content that starts at `begin` in a file.

    Returns:
      ``datasets``: ``[shape, dtype, offset from begin, base64 of the values]`` by path, where one
      of the last two is null. ``attributes``: names of the attributes by path of the group ('' is
      the root). ``texts``: the attributes in `_TEXTS` by path of the group.

    Raises:
      Refused: a link to another place, or a dataset that is virtual, in chunks, compressed, in
        other files, or has no numbers.
      Exception: any exception that h5py raises for a damaged file.
    """
    import h5py

    datasets: dict[str, Any] = {}
    attributes: dict[str, list[str]] = {}
    texts: dict[str, dict[str, str]] = {}
    with open(path, "rb") as raw, h5py.File(_Region(raw, begin, size), "r") as file:
        if file.userblock_size:
            raise Refused("it begins with a user block")
        waiting: list[tuple[str, Any]] = [("", file)]
        seen: set[int] = set()
        while waiting:
            where, group = waiting.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:
                raise Refused(f"group {where!r} has two names")
            seen.add(address)
            attributes[where] = list(group.attrs)
            if found := _texts(group):
                texts[where] = found
            for name in group:
                place = f"{where}/{name}" if where else name
                if place.count("/") > max_depth:
                    raise Refused(f"{place!r:.200} is deeper than {max_depth} groups")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise Refused(f"{place!r} is a link to another place or file")
                item = group[name]
                if isinstance(item, h5py.Dataset):
                    datasets[place] = _dataset(place, item, size)
                elif isinstance(item, h5py.Group):
                    waiting.append((place, item))
                else:
                    raise Refused(f"{place!r} is neither a group nor a dataset")
                if len(datasets) + len(waiting) + len(seen) > max_entries:
                    raise Refused(f"it has more than {max_entries} groups and datasets")
    return {"datasets": datasets, "attributes": attributes, "texts": texts}


def _texts(group: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _TEXTS:
        if name not in group.attrs:
            continue
        attribute = group.attrs.get_id(name)
        if attribute.shape == () and attribute.get_storage_size() <= _MAX_TEXT:
            value = group.attrs[name]
            if isinstance(value, bytes):
                value = value.decode("utf-8", "backslashreplace")
            if isinstance(value, str):
                found[name] = value
    return found


def _dataset(place: str, item: Any, size: int) -> list[Any]:
    from h5py import h5d, h5t

    layout = item.id.get_create_plist()
    kind = layout.get_layout()
    if kind == h5d.VIRTUAL:
        raise Refused(f"dataset {place!r} is virtual: its values are in other files")
    if kind == h5d.CONTIGUOUS and layout.get_external_count():
        raise Refused(f"dataset {place!r} has its values in other files")
    if kind == h5d.CHUNKED:
        raise Refused(
            f"dataset {place!r} is in chunks or compressed, unlike Keras files; rewrite the "
            "file with h5repack -l CONTI -f NONE"
        )
    if item.shape is None:
        raise Refused(f"dataset {place!r} has no values")
    dtype = item.dtype
    # The bytes are read without conversion, so the type must equal a NumPy dtype.
    if dtype.hasobject or dtype.names or h5t.py_create(dtype, logical=True) != item.id.get_type():
        raise Refused(f"dataset {place!r} has dtype {dtype}; expected numbers or bools")
    values = None
    if kind == h5d.COMPACT and item.size * dtype.itemsize <= min(size, 2**16):
        values = base64.b64encode(item[()].tobytes()).decode()
    return [list(item.shape), dtype.str, item.id.get_offset(), values]


def answer(arguments: str) -> str:
    """The catalog as JSON, or ``{"error": text}``; `arguments` is JSON of `catalog`'s arguments."""
    try:
        found = catalog(**json.loads(arguments))
    except Refused as error:
        found = {"error": str(error)}
    except Exception as error:  # h5py raises many types
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    return json.dumps(found)


def main() -> None:
    """Prints the answer to the arguments in argv[1]."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    print(answer(sys.argv[1]))


if __name__ == "__main__":
    main()

"""Zip archives whose sizes, names, overlaps and compression are checked before any read."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.formats.limits import MAX_NAME_LENGTH, MAX_TENSORS, inflated

_ENCRYPTED = 0x1


class ZipArchive:
    """The members of a zip file by name; no member is extracted to a disk.

    Args:
      path: the file, which stays open until `close`.
      compressed: whether members may be deflated.

    Raises:
      UserError: the archive is damaged; a member is encrypted, given twice, named like a path out
        of a folder, or compressed by another method; or the members are larger than possible.
    """

    def __init__(self, path: Path, *, compressed: bool = True) -> None:
        self._file = path.open("rb")
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._zip = self._open()
            self._members = self._check(compressed)
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._file)
        except Exception as error:  # the standard library: a damaged archive may raise anything
            raise UserError(
                f"a truncated or damaged zip archive: {type(error).__name__}: {str(error):.300}"
            ) from error

    def _check(self, compressed: bool) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        known = {zipfile.ZIP_STORED} | ({zipfile.ZIP_DEFLATED} if compressed else set())
        entries = self._zip.infolist()
        if len(entries) > MAX_TENSORS:
            raise UserError(f"a zip archive of {len(entries)} members; at most {MAX_TENSORS}")
        for entry in entries:
            name = entry.filename
            if len(name) > MAX_NAME_LENGTH:
                raise UserError(f"its member {name[:40]!r}… has a name of {len(name)} characters")
            if name in members:
                raise UserError(f"its member {name!r} is there twice")
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                raise UserError(f"its member {name!r} names a place outside of the archive")
            if entry.flag_bits & _ENCRYPTED:
                raise UserError(f"its member {name!r} is encrypted")
            if entry.compress_type not in known:
                names: dict[int, str] = zipfile.compressor_names  # type: ignore[attr-defined]  # not in typeshed
                how = names.get(entry.compress_type, "an unknown method")
                raise UserError(
                    f"its member {name!r} is compressed by {how}; expected "
                    f"{'stored or deflated' if compressed else 'stored'}"
                )
            if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
                raise UserError(f"its member {name!r} is stored, but its two sizes differ")
            members[name] = entry
        # Members that overlap would count the same bytes several times.
        if sum(entry.compress_size for entry in entries) > self.size:
            raise UserError("its members are larger than the file: damaged or a zip bomb")
        total = sum(entry.file_size for entry in entries)
        if total > inflated(self.size):
            raise UserError(
                f"its members would grow to {total} bytes, more than {inflated(self.size)} from "
                f"{self.size}: damaged or a zip bomb"
            )
        return members

    def names(self) -> tuple[str, ...]:
        """All members except folders, in the archive's order."""
        return tuple(name for name in self._members if not name.endswith("/"))

    def length(self, name: str) -> int:
        """Number of bytes of a member, as declared; the sum over members has been checked."""
        return self._members[name].file_size

    def open(self, name: str) -> BinaryIO:
        """Opens a stream over a member; the CRC is checked at the end of the stream.

        Raises UserError if there is no such member, or its header is damaged.
        """
        if name not in self._members:
            raise UserError(f"it has no member {name!r}.{nearest(name, self._members)}")
        try:
            return self._zip.open(self._members[name])  # type: ignore[return-value]  # an IO[bytes]
        except Exception as error:
            raise UserError(_damaged(name, error)) from error

    def read_into(self, stream: BinaryIO, name: str, buffer: memoryview) -> None:
        """Fills the buffer from a member's stream; UserError if the member is short or damaged."""
        try:
            filled = 0
            while filled < len(buffer):
                part = buffer[filled : filled + 2**24]
                count = stream.readinto(part)  # type: ignore[attr-defined]  # a ZipExtFile has it
                if not count:
                    raise UserError(f"its member {name!r} is truncated")
                filled += count
        except UserError:
            raise
        except Exception as error:
            raise UserError(_damaged(name, error)) from error

    def read(self, name: str) -> bytearray:
        """All bytes of a member."""
        with self.open(name) as stream:
            data = bytearray(self.length(name))
            self.read_into(stream, name, memoryview(data))
        return data

    def place(self, name: str) -> tuple[int, int] | None:
        """(offset, size in bytes) of a stored member, after a CRC check; None if it is deflated."""
        entry = self._members.get(name)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            return None
        chunk = memoryview(bytearray(min(entry.file_size, 2**20)))
        with self.open(name) as stream:
            for start in range(0, entry.file_size, 2**20):
                self.read_into(stream, name, chunk[: min(2**20, entry.file_size - start)])
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        begin = entry.header_offset + 30
        begin += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return begin, entry.file_size

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()
        self._file.close()


def _damaged(name: str, error: Exception) -> str:
    return f"its member {name!r} is damaged: {type(error).__name__}: {str(error):.300}"

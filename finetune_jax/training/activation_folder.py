"""Cached activations on disk: one folder per split, in a parent folder of bounded size.

A folder holds the activations as an ArrayRecord file of one record per example and view, the
targets as ``targets.npz``, and ``meta.json``. It is written under a temporary name and renamed when
complete, so that no reader sees an incomplete folder. ``meta.json`` and the targets have a SHA-256.
A record ends with a CRC-32 of its values, of its number and of the folder's name. All checksums are
verified when the folder is opened, and the checksum of a record again whenever the record is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, require_seal, seal, write_json

_CRC_BYTES = 4
_BYTES_AT_ONCE = 2**26
_HALF = ".half-"
_SECONDS_OF_A_DAY = 24 * 3600


@dataclasses.dataclass(frozen=True)
class ActivationFolder:
    """Activations of one split in a folder.

    Attributes:
      path: the folder; its name is a hash of all that the activations depend on.
      activation: shape structs of one input's activation, a tree of arrays.
      inputs: number of inputs to the model per example.
    """

    path: Path
    activation: Any
    inputs: int

    @property
    def exists(self) -> bool:
        """Whether the path exists; `damage` checks the content."""
        return os.path.lexists(self.path)

    def damage(self, part: int = 0, parts: int = 1) -> str:
        """Returns why the folder cannot be used, in one line; empty if it is whole.

        Everything is read once. Several processes can share the work: each reads a part of the
        records. No process waits for another.

        Args:
          part: number of the part of the records to read, from 0.
          parts: number of parts.
        """
        return damage_of(self.path, part, parts)

    def remove(self) -> None:
        """Removes what is at the path.

        Raises:
          UserError: it cannot be removed.
        """
        try:
            is_folder = self.path.is_dir() and not self.path.is_symlink()
            shutil.rmtree(self.path) if is_folder else self.path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be removed: {error.strerror}") from None

    def mark_used(self) -> None:
        """Makes the folder the one that `make_room` removes last."""
        with contextlib.suppress(OSError):  # the folder may be read-only
            os.utime(self.path / "meta.json")

    def write(
        self,
        batches: Iterable[tuple[int, Any]],
        targets: dict[str, np.ndarray],
        meta: dict[str, Any],
    ) -> None:
        """Writes the folder, unless another run has written it in the meantime.

        Args:
          batches: pairs of the number of the first example, and activations: a tree of arrays
            [examples, inputs, …].
          targets: arrays [examples, …] by name, complete once `batches` is exhausted.
          meta: JSON object with at least ``bytes``.

        Raises:
          UserError: the folder cannot be written.
        """
        from array_record.python import array_record_module

        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not tempfile.mkdtemp, which keeps out the other users of a shared folder.
            half = self.path.with_name(f"{_HALF}{uuid.uuid4().hex}")
            half.mkdir()
        try:
            with _writing(self.path):
                writer = array_record_module.ArrayRecordWriter(
                    str(half / "activations"), "group_size:1"
                )
            count = 0
            for _, values in batches:
                leaves = jax.tree.leaves(values)
                for number in range(len(leaves[0])):
                    parts = (np.ascontiguousarray(x[number]).tobytes() for x in leaves)
                    content = b"".join(parts)
                    with _writing(self.path):
                        writer.write(content + _crc(content, self.path.name, count))
                    count += 1
            with _writing(self.path):
                writer.close()
                # The stubs of NumPy take a name in `targets` for the option `allow_pickle`.
                np.savez(half / "targets.npz", **targets)  # type: ignore[arg-type]
                about = {"records": count, "targets": tree.checksums(targets)}
                write_json(half / "meta.json", seal({**meta, **about}))
            try:
                half.rename(self.path)
            except OSError as error:
                if self.damage():
                    raise UserError(
                        f"{self.path}: cannot be written: {error.strerror}; is "
                        f"prefix_cache.dir used by other programs?"
                    ) from None
                # Another run was faster.
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def targets(self) -> dict[str, np.ndarray]:
        """Returns the targets of all examples, arrays [examples, …] by name."""
        return dict(np.load(self.path / "targets.npz"))

    def reader(self) -> Callable[[np.ndarray], Any]:
        """Returns the function from record numbers to activations.

        Its result is a tree of arrays [records * inputs, …]. It raises UserError for a record that
        cannot be read or does not have its checksum.
        """
        read_records = _records(self.path)
        leaves, structure = jax.tree.flatten(self.activation)
        sizes = [self.inputs * math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves]
        starts = np.cumsum([0, *sizes])

        def read(indices: np.ndarray) -> Any:
            records = read_records([int(i) for i in indices])
            parts = [
                np.frombuffer(b"".join(r[begin : begin + n] for r in records), x.dtype)
                for begin, n, x in zip(starts, sizes, leaves, strict=False)
            ]
            shaped = [p.reshape(-1, *x.shape) for p, x in zip(parts, leaves, strict=True)]
            return jax.tree.unflatten(structure, shaped)

        return read


def entries_in(parent: Path) -> list[Path]:
    """Returns all activation folders in their parent folder, damaged or not."""
    named = (path for path in parent.iterdir() if re.fullmatch(r"[0-9a-f]{32}", path.name))
    return sorted(named)


def damage_of(path: Path, part: int = 0, parts: int = 1) -> str:
    """As `ActivationFolder.damage`, for the folder at `path`."""
    try:
        meta = require_seal(read_json(path / "meta.json"), str(path / "meta.json"))
        with np.load(path / "targets.npz", allow_pickle=False) as file:
            targets = {name: file[name] for name in file.files}
        if tree.checksums(targets) != meta["targets"]:
            return f"{path / 'targets.npz'}: the targets do not have their checksums"
        count = int(meta["records"])
        at_once = max(1, _BYTES_AT_ONCE // (meta["bytes"] // max(count, 1) + 1))
        read = _records(path, count)
        own = range(part * count // parts, (part + 1) * count // parts)
        for start in range(own.start, own.stop, at_once):
            read(list(range(start, min(start + at_once, own.stop))))
    except UserError as error:
        return str(error)
    # NumPy and ArrayRecord raise any exception for a damaged file.
    except Exception as error:  # noqa: BLE001
        return " ".join(f"{path}: {type(error).__name__}: {error}".split())
    return ""


def make_room(parent: Path, allowed: int) -> None:
    """Removes the least recently used activation folders until the others take `allowed` bytes.

    Unfinished folders of runs that ended early are removed after a day.
    """
    if not parent.is_dir():
        return
    for half in parent.glob(f"{_HALF}*"):
        if time.time() - _last_change(half) > _SECONDS_OF_A_DAY:
            shutil.rmtree(half, ignore_errors=True)
    entries = [(_last_change(path), _size(path), path) for path in entries_in(parent)]
    used = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda e: e[0]):
        if used <= allowed:
            return
        shutil.rmtree(path, ignore_errors=True)
        used -= size


def _size(path: Path) -> int:
    """Bytes of the activations of a folder; of a damaged folder, the bytes of its files."""
    try:
        return int(read_json(path / "meta.json")["bytes"])
    except (UserError, KeyError, TypeError, ValueError):
        return sum(file.lstat().st_size for file in path.rglob("*"))


def _last_change(path: Path) -> float:
    """Time at which a folder or a file in it was last changed; now, for a path that is gone."""
    try:
        return max(p.lstat().st_mtime for p in (path, *path.glob("*")))
    except OSError:
        return time.time()


def _records(path: Path, count: int | None = None) -> Callable[[list[int]], list[bytes]]:
    """The function from record numbers to the verified records, without their checksums.

    Args:
      path: the activation folder.
      count: number of records that the file must have.
    """
    from array_record.python import array_record_data_source

    file = path / "activations"
    source = array_record_data_source.ArrayRecordDataSource(str(file))
    if count is not None and len(source) != count:
        raise UserError(f"{file}: expected {count} records, found {len(source)}")

    def read(numbers: list[int]) -> list[bytes]:
        try:
            records = source.__getitems__(numbers)
        # ArrayRecord raises any exception for a damaged file.
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{file}: a record cannot be read: {text}; {_WAY_ON}") from None
        contents = []
        for number, record in zip(numbers, records, strict=True):
            content = record[:-_CRC_BYTES]
            if record[-_CRC_BYTES:] != _crc(content, path.name, number):
                raise UserError(f"{file}: record {number} does not have its checksum; {_WAY_ON}")
            contents.append(content)
        return contents

    return read


_WAY_ON = "repeat the command: it then computes these activations anew"


def _crc(content: bytes, name: str, number: int) -> bytes:
    """Checksum of a record's values, of its number and of the folder's name."""
    return zlib.crc32(content, zlib.crc32(f"{name}/{number}".encode())).to_bytes(_CRC_BYTES, "big")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns an error of a write into a UserError that names the folder."""
    try:
        yield
    # ArrayRecord raises RuntimeError where a file cannot be written.
    except (OSError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"prefix_cache.dir: {path} cannot be written: {text}; set another folder, or none"
        ) from None

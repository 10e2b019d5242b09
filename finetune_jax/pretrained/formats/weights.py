"""An open weight file: names, shapes and dtypes are known, values are read tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.formats.limits import check_specs

Stamp = tuple[tuple[int, int, int], ...]
"""Result of `Weights.stamp`."""

Spec = tuple[tuple[int, ...], np.dtype]
"""(shape, dtype) of a tensor."""


class Weights:
    """An open weight file of any format; see `finetune_jax.pretrained.formats.open_weights`.

    Example:
      with open_weights("resnet20.th") as weights:
          kernel = weights.read("module.conv1.weight")  # f32[16, 3, 3, 3]

    Args:
      path: the file, or the folder of a format with several files.
      specs: (shape, dtype) by tensor name.
      read: function that returns the values of a tensor by name.
      close: function that closes the files.
      other_entries: see below.
      metadata: see below.
      files: all files with values, if there are several.
      sets, chosen: see below.

    Raises:
      UserError: the file has too many names, a too long name, or an impossible shape.

    Attributes:
      path: the file or folder.
      other_entries: names of entries that are no tensors (an epoch, an optimizer) and are not read.
      metadata: texts in the file's header (safetensors' ``__metadata__``).
      files: all files with values.
      sets: place of each set of weights by role (`roles.ROLES`), in a file that has several sets,
        such as a teacher and a student.
      chosen: role of the set whose tensors these are; empty in a file without roles.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, Spec],
        read: Callable[[str], np.ndarray],
        close: Callable[[], None],
        other_entries: tuple[str, ...] = (),
        metadata: Mapping[str, str] | None = None,
        files: tuple[Path, ...] = (),
        *,
        sets: Mapping[str, str] | None = None,
        chosen: str = "",
    ) -> None:
        self.path = path
        self.other_entries = other_entries
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.files = files or (path,)
        self.sets: Mapping[str, str] = dict(sets or {})
        self.chosen = chosen
        self._specs = dict(specs)
        self._read = read
        self._close = close
        try:
            check_specs(self._specs)
        except UserError as error:
            close()
            raise UserError(f"{path}: {error}") from None

    def view(self, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray]) -> Weights:
        """The same file with other tensors; closing the view closes this file."""
        return Weights(
            self.path,
            specs,
            read,
            self._close,
            self.other_entries,
            self.metadata,
            self.files,
            sets=self.sets,
            chosen=self.chosen,
        )

    def without_values(self) -> Weights:
        """The same file, all of whose tensors hold zeros: no value is read."""

        def zeros(name: str) -> np.ndarray:
            shape, dtype = self._specs[name]
            return np.broadcast_to(np.zeros((), dtype), shape)

        return self.view(self._specs, zeros)

    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the file's order."""
        return tuple(self._specs)

    def spec(self, name: str) -> Spec:
        """(shape, dtype) of a tensor, without reading its values; UserError for an unknown name."""
        if name not in self._specs:
            raise UserError(f"{self.path} has no tensor {name!r}.{nearest(name, self._specs)}")
        return self._specs[name]

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, with the shape and dtype of `spec`.

        Raises UserError if there is no such tensor, or its part of the file is damaged.
        """
        shape, dtype = self.spec(name)
        try:
            array = self._read(name)
        except UserError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise UserError(f"{self.path}: tensor {name!r}: {error}") from error
        except (OSError, MemoryError) as error:
            raise UserError(
                f"{self.path}: tensor {name!r} cannot be read: {type(error).__name__}: {error}"
            ) from error
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"{self.path}: tensor {name!r} is declared as {dtype}{list(shape)} and holds "
                f"{array.dtype}{list(array.shape)}"
            )
        return array

    def sha256(self) -> str:
        """SHA-256 of the file. For several files, of the lines ``digest  name`` sorted by name.

        Raises UserError if a file cannot be read.
        """
        digests: dict[str, str] = {}
        try:
            for file in self.files:
                name = file.relative_to(self.path) if self.path.is_dir() else file.name
                with file.open("rb") as stream:
                    digests[str(name)] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error}") from error
        if self.files == (self.path,):
            return digests[self.path.name]
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def stamp(self) -> Stamp:
        """(size, time of change in ns, inode) of each file; differs after a file was rewritten.

        Raises UserError if a file is missing.
        """
        try:
            found = [file.stat() for file in self.files]
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error}") from error
        return tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in found)

    def close(self) -> None:
        """Closes the file; no tensor can be read afterwards."""
        self._close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

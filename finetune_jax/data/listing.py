"""Tables of files: their identity, their columns, and images decoded when they are read."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import heapq
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_jax.data.images import MAX_PIXELS, decode
from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError, nearest, tuple_hint

# Options that change no example. The number of examples shows whether bad images were skipped.
_NO_EFFECT = ("data_dir", "prepare", "on_bad_image")
# Files up to these limits are all read for the content of a source; of more files a sample is read.
_READ_FILES, _READ_BYTES = 256, 64 * 2**20
_SAMPLE = 64
# A larger file is read in blocks that are spread over the file.
_BLOCKS, _BLOCK_BYTES = 64, 2**18
# Largest packed list of names that is kept, so that a message can name what was removed.
_NAMES_BYTES = 32 * 2**10


@dataclasses.dataclass(frozen=True)
class FileList:
    """The files of a source, of which only sizes and times have been read.

    Attributes:
      root: folder of the source.
      paths: paths by the name of each file in the source.
      sizes: sizes in bytes, in the order of `paths`.
      times: times of the last change in ns, in the order of `paths`.
    """

    root: Path
    paths: Mapping[str, Path]
    sizes: tuple[int, ...]
    times: tuple[int, ...]

    @classmethod
    def of(cls, root: Path, paths: Mapping[str, Path], on_missing: str = "error") -> FileList:
        """Reads sizes and times.

        Args:
          root: folder of the source.
          paths: paths by the name of each file in the source.
          on_missing: ``skip`` leaves missing files out of the list; ``error`` refuses them.

        Raises:
          UserError: a missing file, or a name that is not UTF-8.
        """
        found, kept = [], {}
        for name, path in paths.items():
            try:
                str(path).encode()
                found.append(os.stat(path))
                kept[name] = path
            except OSError as error:
                if on_missing == "error":
                    raise UserError(f"{path}: cannot be read: {error.strerror}") from None
            except UnicodeEncodeError:
                raise UserError(
                    f"{ascii(str(path))}: the name of this file is not UTF-8; rename it"
                ) from None
        return cls(root, kept, tuple(x.st_size for x in found), tuple(x.st_mtime_ns for x in found))

    def origin(self, options: Options) -> str:
        """`Source.origin`: the root, and a hash that changes with a name, a size or a time.

        The hash is also over the options that change examples.
        """
        read = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NO_EFFECT}
        digest = hashlib.sha256(json.dumps(read, sort_keys=True).encode())
        for name, size, time in zip(self.paths, self.sizes, self.times, strict=True):
            digest.update(f"\n{name}\t{size}\t{time}".encode())
        return f"{self.root} {digest.hexdigest()}"

    def contents(self) -> dict[str, Any]:
        """What the files hold, wherever they are: a part of `Source.identity`.

        Returns:
          ``files`` and ``bytes``, the number and the size of all files; ``list``, a digest of names
          and sizes; ``content``, digests of the content by name, of all files or of a fixed sample;
          and ``names``, the packed list of names (`unpack_names`) if the list is not too long.
        """
        names, digest = sorted(self.paths), hashlib.sha256()
        sizes = dict(zip(self.paths, self.sizes, strict=True))
        for name in names:
            digest.update(f"{name}\t{sizes[name]}\n".encode(errors="surrogateescape"))
        read = names
        if len(names) > _READ_FILES or sum(self.sizes) > _READ_BYTES:
            # The smallest hashes of names: other files that come or go do not change the sample.
            read = sorted(heapq.nsmallest(_SAMPLE, names, key=_name_hash))
        found = {
            "files": len(names),
            "bytes": sum(self.sizes),
            "list": digest.hexdigest(),
            "content": {name: content_digest(self.paths[name]) for name in read},
        }
        text = "\n".join(names).encode(errors="surrogateescape")
        packed = base64.b64encode(zlib.compress(text, 9)).decode()
        return found | ({"names": packed} if len(packed) <= _NAMES_BYTES else {})


def unpack_names(packed: str) -> list[str]:
    """The names that `FileList.contents` packed; an empty list if they are damaged."""
    try:
        text = zlib.decompress(base64.b64decode(packed, validate=True))
    except (ValueError, zlib.error):
        return []
    return text.decode(errors="surrogateescape").split("\n")


def content_digest(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file; of a file above 16 MiB, of its size and 64 blocks.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _BLOCKS * _BLOCK_BYTES:
                return hashlib.file_digest(file, "sha256").hexdigest()[:16]
            digest = hashlib.sha256(str(size).encode())
            for number in range(_BLOCKS):
                file.seek(number * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
            return digest.hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def order_digest(rows: Iterable[Any]) -> str:
    """16 hex digits of the SHA-256 of the rows of a split in their order, as JSON."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def _name_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


@dataclasses.dataclass(frozen=True)
class TableExamples:
    """Rows of a table; an image is decoded when its row is read.

    Attributes:
      columns: values of all rows, by column.
      images: image files of all rows, by column.
      max_pixels: pixels of the largest image, ``data.max_pixels``.
    """

    columns: dict[str, list[Any]]
    images: dict[str, list[str]]
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {name: values[index] for name, values in self.columns.items()}
        for name, files in self.images.items():
            example[name] = decode(files[index], max_pixels=self.max_pixels)
        return example

    def labels(self) -> Sequence[Any]:
        """See `finetune_jax.data.examples.Labelled`."""
        return self.columns["label"]


def renamed(options: Options, names: Iterable[str], where: str) -> dict[str, str]:
    """Names in an example of the columns that ``config.data.*_column`` name.

    Args:
      options: the options that end in ``_column`` are read.
      names: names of all columns of the data.
      where: name of the data, for messages.

    Returns:
      By the name of a column in the data, its name in an example: ``image``, ``label`` or
      ``mask``, and ``image2`` for the second image of a pair. Columns that are missing under their
      default names are left out.

    Raises:
      UserError: a column that is missing, or more than two columns of images.
    """
    names = list(names)
    found: dict[str, str] = {}
    for key in ("image", "label", "mask"):
        wanted = getattr(options, f"{key}_column")
        # The name of a single column may have a comma.
        single = key != "image" or wanted in names
        pair = [wanted] if single else [name.strip() for name in wanted.split(",")]
        if len(pair) > 2 or (len(pair) == 2 and len({*pair} - {""}) < 2):
            raise UserError(
                f"data.{key}_column: expected a column, or two different ones with a comma "
                f"between them, found {wanted!r}"
            )
        for name, target in zip(pair, (key, f"{key}2"), strict=False):
            default = key if len(pair) == 1 else ""
            column = pick(name, default, names, f"{key}_column", where)
            if column in found:
                raise UserError(
                    f"data.{key}_column: {where}: the column {column!r} is the {found[column]!r} "
                    f"of an example, and cannot be its {target!r} too"
                )
            if column:
                found[column] = target
    return found


def pick(wanted: str, default: str, names: Iterable[str], key: str, where: str) -> str:
    """The column that ``config.data.KEY`` names; "" if it is missing under its default name.

    If no column has exactly this name, one whose name differs only in case and in spaces around it
    is meant.

    Args:
      wanted: value of the key.
      default: default value of the key.
      names: names of all columns of the data.
      key: name of the key in ``config.data``.
      where: name of the data, for messages.

    Raises:
      UserError: a column that is missing, and whose name is not the default; or several that
        differ from the name only in case.
    """
    names = list(names)
    if wanted in names:
        return wanted
    alike = [name for name in names if wanted and _plain(name) == _plain(wanted)]
    if len(alike) > 1:
        raise UserError(
            f"data.{key}: {where} has several columns that may be {wanted!r}: "
            f"{', '.join(map(repr, alike))}; set data.{key} to one of them"
        )
    if alike:
        return alike[0]
    if wanted in (default, ""):
        return ""
    raise UserError(
        f"data.{key}: {where} has no column {wanted!r}.{nearest(wanted, names)}"
        f"{tuple_hint(f'data.{key}', wanted) if key == 'label_columns' else ''}"
    )


def _plain(name: str) -> str:
    return name.strip().casefold()

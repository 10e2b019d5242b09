"""Tables of files: their fingerprint, their columns, and images decoded when they are read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune_jax.data.images import decode
from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError, nearest

# Options that change no example. The number of examples shows whether bad images were skipped.
_NO_EFFECT = ("data_dir", "prepare", "on_bad_image")


def fingerprint(root: Path, files: Iterable[Path], options: Options) -> str:
    """Identity of the files of a source: `root`, and a hash.

    The hash is over the path, the size and the modification time of every file, and over the
    options that change examples. No file is read.

    Raises:
      UserError: a file is missing.
    """
    digest = hashlib.sha256()
    read = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NO_EFFECT}
    digest.update(json.dumps(read, sort_keys=True).encode())
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
        name = os.path.relpath(file, root)
        digest.update(f"\n{name}\t{status.st_size}\t{status.st_mtime_ns}".encode())
    return f"{root} {digest.hexdigest()}"


@dataclasses.dataclass(frozen=True)
class TableExamples:
    """Rows of a table; an image is decoded when its row is read.

    Attributes:
      columns: values of all rows, by column.
      images: image files of all rows, by column.
    """

    columns: dict[str, list[Any]]
    images: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {name: values[index] for name, values in self.columns.items()}
        return example | {name: decode(files[index]) for name, files in self.images.items()}


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
    names, found = list(names), {}
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
            if column:
                found[column] = target
    return found


def pick(wanted: str, default: str, names: Iterable[str], key: str, where: str) -> str:
    """The column that ``config.data.KEY`` names; "" if it is missing under its default name.

    Args:
      wanted: value of the key.
      default: default value of the key.
      names: names of all columns of the data.
      key: name of the key in ``config.data``.
      where: name of the data, for messages.

    Raises:
      UserError: a column that is missing, and whose name is not the default.
    """
    names = list(names)
    if wanted in names:
        return wanted
    if wanted in (default, ""):
        return ""
    raise UserError(f"data.{key}: {where} has no column {wanted!r}.{nearest(wanted, names)}")

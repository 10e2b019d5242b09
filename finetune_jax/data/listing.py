"""Files listed without reading them: what identifies them, and images decoded when asked for."""

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

# What changes no example, or is told apart otherwise.
_APART = ("data_dir", "prepare", "on_bad_image")


def fingerprint(root: Path, files: Iterable[Path], options: Options) -> str:
    """`root` and a hash of every file's path, size and time of change, and of the options.

    Raises:
      UserError: a file that is not there.
    """
    digest = hashlib.sha256()
    read = {k: v for k, v in dataclasses.asdict(options).items() if k not in _APART}
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
    """Rows of a table; images are files decoded when the row is read.

    Attributes:
      columns: values by column, all of one length.
      images: a file per row, by column.
    """

    columns: dict[str, list[Any]]
    images: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {name: values[index] for name, values in self.columns.items()}
        return example | {name: decode(files[index]) for name, files in self.images.items()}


def renamed(options: Options, names: Iterable[str], where: str) -> dict[str, str]:
    """What examples call the columns that the options name, by the data's own names.

    Args:
      options: of which those that end in ``_column``.
      names: of the columns that are there.
      where: what they are columns of, for messages.

    Returns:
      The columns that examples call ``image``, ``label`` and ``mask``, as far as they are there;
      of pairs, ``image`` and ``image2``.

    Raises:
      UserError: a column that is not there, or more than two of images.
    """
    names, found = list(names), {}
    for key in ("image", "label", "mask"):
        wanted = getattr(options, f"{key}_column")
        # A name may have a comma itself.
        whole = key != "image" or wanted in names
        pair = [wanted] if whole else [name.strip() for name in wanted.split(",")]
        if len(pair) > 2 or (len(pair) == 2 and len({*pair} - {""}) < 2):
            raise UserError(
                f"data.{key}_column: expected a column, or two different ones with a comma "
                f"between them, found {wanted!r}"
            )
        for name, called in zip(pair, (key, f"{key}2"), strict=False):
            default = key if len(pair) == 1 else ""
            column = pick(name, default, names, f"{key}_column", where)
            if column:
                found[column] = called
    return found


def pick(wanted: str, default: str, names: Iterable[str], key: str, where: str) -> str:
    """The column that ``config.data.KEY`` names; "" where its default is not there.

    Raises:
      UserError: another than the default, and not there.
    """
    names = list(names)
    if wanted in names:
        return wanted
    if wanted in (default, ""):
        return ""
    raise UserError(f"data.{key}: {where} has no column {wanted!r}.{nearest(wanted, names)}")

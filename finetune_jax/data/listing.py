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
    """Rows of a table; the image, if there is one, is a file decoded when the row is read.

    Attributes:
      columns: values by column, all of one length.
      images: a file per row; None for no images.
    """

    columns: dict[str, list[Any]]
    images: list[str] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {name: values[index] for name, values in self.columns.items()}
        if self.images is not None:
            example["image"] = decode(self.images[index])
        return example


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

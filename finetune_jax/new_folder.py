"""A folder that a command writes: complete, or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from finetune_jax.errors import UserError


def require_new(output: Path) -> None:
    """Raises UserError for a value of ``--output`` that is neither new nor an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output}: expected a new or an empty folder")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output={output}: the folder {output.parent} does not exist")


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a folder under another name, which gets the name `output` if the block succeeds.

    Until then only this user can read the folder; after an error it is removed.

    Args:
      output: the folder to write, new or empty.

    Raises:
      UserError: as `require_new`.
    """
    require_new(output)
    folder = output.absolute().with_name(f".{output.absolute().name}.{os.getpid()}")
    folder.mkdir(mode=0o700)
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        if output.is_dir():
            output.rmdir()
        os.replace(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old

"""What a full, read-only or vanished disk looks like, whichever library meets it first.

Our own files raise OSError. Orbax and TensorStore write in threads, and raise ValueError or
XlaRuntimeError whose text has the reason of the system.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from finetune_jax.errors import Blocked, UserError

_REASONS = {
    number: os.strerror(number)
    for number in (
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
        errno.EFBIG, errno.ESTALE, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
        errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ENXIO, errno.ENODEV, errno.EBUSY,
        errno.EEXIST, errno.ENOTEMPTY, errno.ETXTBSY, errno.EXDEV,
    )
}  # fmt: skip
# Reasons that are recognised in the text of other errors, because only errors of disks have them.
_IN_TEXTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG,
             errno.ESTALE, errno.ENOENT)  # fmt: skip


def disk_trouble(error: BaseException) -> str | None:
    """Returns path and reason if an error comes from the file system; None for other errors.

    Args:
      error: an error; the errors that it was raised from are looked at too.
    """
    for cause in _causes(error):
        if isinstance(cause, UserError):
            continue
        if isinstance(cause, OSError) and cause.errno in _REASONS:
            reason = _REASONS[cause.errno]
            return f"{os.fsdecode(cause.filename)}: {reason}" if cause.filename else reason
        text = str(cause)
        for number in _IN_TEXTS:
            if _REASONS[number].lower() in text.lower() or _is_gone(number, text):
                path = re.search(r"(?<![\w.])/[^\s'\"\\\[\]]+", text)
                return f"{path[0].rstrip(':,')}: {_REASONS[number]}" if path else _REASONS[number]
    return None


def _is_gone(number: int, text: str) -> bool:
    """Whether TensorStore or Orbax says that a file is gone that it has just written."""
    gone = text.startswith("NOT_FOUND") and "local file" in text
    return number == errno.ENOENT and (gone or "are missing .zarray in checkpoint" in text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the errors of a group, and what each was raised from or during."""
    seen: set[int] = set()
    ahead: list[BaseException | None] = [error]
    while ahead:
        cause = ahead.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            ahead += cause.exceptions
        ahead += [cause.__cause__, cause.__context__]


def make_folder(folder: Path, name: str = "") -> None:
    """Creates a folder, and its parents, if it does not exist.

    Args:
      folder: the folder.
      name: the folder in messages, such as ``--workdir=DIR``.

    Raises:
      Blocked: the folder cannot be created; a file or a dangling link is at its place; or its
        path is not UTF-8, which the files of checkpoints do not allow.
    """
    name = name or str(folder)
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise Blocked(f"{ascii(name)}: the name of this folder is not UTF-8; rename it") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if folder.is_symlink() and not folder.exists():
            target = os.readlink(folder)
            raise Blocked(
                f"{name}: cannot write there: it is a link to {target}, which does not exist"
            ) from None
        if folder.exists() and not folder.is_dir():
            raise Blocked(f"{name}: cannot write there: it is a file; expected a folder") from None
        raise Blocked(unwritable(name, error)) from None


def unwritable(name: str, error: OSError) -> str:
    """The message about a folder in which a file cannot be written."""
    return f"{name}: cannot write there: {error.strerror or error}"

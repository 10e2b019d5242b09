"""How a command ends: its last line and its exit status, for every error that is no bug."""

from __future__ import annotations

import contextlib
import os
import sys

from finetune_jax.disk import disk_trouble
from finetune_jax.errors import UserError
from finetune_jax.interruption import Interrupted

CLOSED_PIPE = 141
"""Exit status after a reader of the output has closed the pipe, as in ``| head``."""


def ending(error: BaseException) -> tuple[str, int] | None:
    """Returns the message and the exit status for an error.

    Returns:
      None if the error is a bug, whose traceback is needed. The message is empty if there is nobody
      to read it.
    """
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, Interrupted):
        return str(error), error.status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, BrokenPipeError):
        return "", CLOSED_PIPE
    if isinstance(error, Exception) and (trouble := disk_trouble(error)):
        return f"error: {trouble}", 2
    return None


def report(error: BaseException) -> int:
    """Prints the message of an error and returns the exit status; raises bugs again."""
    found = ending(error)
    if found is None:
        raise error
    text, status = found
    if text:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)
    if status == CLOSED_PIPE:
        drop_output()
    return status


def drop_output() -> None:
    """Sends to nowhere what Python still flushes at the exit after a pipe was closed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())

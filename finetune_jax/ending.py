"""How a command ends: its last line and its exit status, for every error that is no bug."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from finetune_jax.disk import disk_trouble
from finetune_jax.errors import CheckFailed, UserError
from finetune_jax.interruption import Interrupted, install
from finetune_jax.tables import shown

_MODULE = re.compile(r"finetune_jax(\.\w+)?")
"""A command as a module; the processes that an ablation starts are ``finetune_jax.ablation.…``."""

CLOSED_PIPE = 141
"""Exit status after a reader of the output has closed the pipe, as in ``| head``."""


def ending(error: BaseException) -> tuple[str, int] | None:
    """Returns the message and the exit status for an error.

    Returns:
      None if the error is a bug, whose traceback is needed. The message is empty if there is no one
      to read it.
    """
    if isinstance(error, UserError | CheckFailed):
        return f"error: {error}", 2
    if isinstance(error, Interrupted):
        command = typed_command()
        return f"{error}\n{command}" if command else str(error), error.status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, BrokenPipeError):
        return "", CLOSED_PIPE
    if platforms := _missing_platforms(error):
        return (
            f"error: JAX_PLATFORMS={platforms}: JAX finds no device of this kind here; "
            f"JAX_PLATFORMS=cpu computes on the CPU, and pip install 'jax[cuda13]' or 'jax[tpu]' "
            f"installs what a GPU or a TPU needs"
        ), 2
    if isinstance(error, Exception) and (trouble := disk_trouble(error)):
        return f"error: {trouble}", 2
    return None


def typed_command() -> str:
    """This process's command as a line for a shell; empty if the process is no command of ours."""
    program, *rest = sys.orig_argv
    for place, word in enumerate(rest):
        if _MODULE.fullmatch(word) and rest[place - 1] == "-m":
            return shlex.join([program, *rest])
        if Path(word).name == "finetune-jax":
            return shlex.join(["finetune-jax", *rest[place + 1 :]])
    return ""


def _missing_platforms(error: BaseException) -> str:
    """``JAX_PLATFORMS``, if an error says that JAX cannot start what it names; else ""."""
    frames = traceback.extract_tb(error.__traceback__)
    starts = ("backends", "_init_backend", "_get_backend_uncached")
    # JAX takes its own frames out of some tracebacks.
    said = isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)
    if said or any(f.filename.endswith("xla_bridge.py") and f.name in starts for f in frames):
        return os.environ.get("JAX_PLATFORMS", "")
    return ""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Ends the process as `ending` says for what is raised in this context; bugs are raised on."""
    install()
    quieten()
    for stream in (sys.stdout, sys.stderr):  # a file name need not be text in UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        sys.exit(report(error))


def report(error: BaseException) -> int:
    """Prints the message of an error and returns the exit status; raises bugs again."""
    found = ending(error)
    if found is None:
        raise error
    text, status = found
    if text:
        with contextlib.suppress(OSError):
            print(shown(text, lines=True), file=sys.stderr, flush=True)
    if status == CLOSED_PIPE:
        drop_output()
    return status


def quieten() -> None:
    """Keeps tracebacks of libraries off the terminal for errors that `ending` explains.

    Threads of Orbax log the error that the main thread then raises; asyncio logs each of the
    hundreds of writes that a full disk refuses.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    threading.excepthook = _thread_hook
    sys.unraisablehook = _unraisable_hook


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or ending(error) is None


def _thread_hook(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is None or ending(arguments.exc_value) is None:
        threading.__excepthook__(arguments)


def _unraisable_hook(arguments: sys.UnraisableHookArgs) -> None:
    error = arguments.exc_value
    # Writes that TensorStore gives up report to an event loop that Orbax has closed.
    given_up = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if not given_up and (error is None or ending(error) is None):
        sys.__unraisablehook__(arguments)


def drop_output() -> None:
    """Discards the output that Python would flush at its exit after the pipe was closed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())

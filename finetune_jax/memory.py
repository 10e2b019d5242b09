"""Returns freed memory to the operating system."""

from __future__ import annotations

import ctypes
import sys
import time

_SECONDS = 10.0  # least time between two calls; a call takes milliseconds
_last = -_SECONDS


def return_freed_memory() -> None:
    """Returns freed memory to the operating system, if the C library is glibc.

    The function does nothing if its last call was less than ten seconds ago.

    glibc keeps freed blocks for each thread that allocated them. A checkpoint is written by many
    threads, so a run that saves often would seem to grow by megabytes a minute, up to hundreds.
    """
    global _last
    now = time.monotonic()
    if now - _last < _SECONDS:
        return
    _last = now
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

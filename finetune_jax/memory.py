"""Gives memory that was freed back to the system."""

from __future__ import annotations

import ctypes
import sys
import time

_SECONDS = 10.0  # least time between two calls; a call takes milliseconds
_last = -_SECONDS


def return_freed_memory() -> None:
    """Returns freed memory to the system, if the C library is glibc; at most every ten seconds.

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

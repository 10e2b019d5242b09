"""Standard output without the lines of Gloo, the library of exchanges between CPUs.

Gloo prints a line for every group of processes that it connects, from C++ and on standard output;
no option turns the lines off. They would stand among the results that a command prints.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from typing import BinaryIO

# Gloo writes a line in these pieces, and two of its threads may write at once: a line then has the
# pieces of several lines in any order.
_PIECES = (
    rb"\[Gloo\] Rank|is connected to|peer ranks\. Expected number of connected peer ranks is :"
)
_GLOO = re.compile(rb"\[Gloo\] Rank |(?=.*connected )(?:%s|\d|\s)+$" % _PIECES)


def drop_gloo_lines() -> None:
    """Leaves out the lines that Gloo prints on standard output from now on.

    Python's own output goes to the old standard output directly. What other code of this process
    writes passes through a pipe, from which a thread copies all other lines.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    sys.stdout = os.fdopen(kept, "w", buffering=1, encoding=encoding, errors=errors)
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    thread = threading.Thread(target=copy_lines, args=(os.fdopen(reading, "rb"), kept), daemon=True)
    thread.start()


def copy_lines(stream: BinaryIO, target: int) -> None:
    """Copies the lines of a stream to a file descriptor, but for those of Gloo."""
    for line in stream:
        if not _GLOO.match(line.lstrip()):
            try:
                os.write(target, line)
            except OSError:  # the reader of the output is gone; the main thread notices it
                return

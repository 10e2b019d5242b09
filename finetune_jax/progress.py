"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import contextvars
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from finetune_jax.tables import shown

_quiet = contextvars.ContextVar("quiet", default=False)
_REFRESH_SECONDS = 0.1


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """In this context, `say` prints nothing and no progress bar is drawn."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class Progress:
    """Progress of training: a bar with a text on a terminal, lines elsewhere.

    Args:
      total: number of steps of the run.
      start: number of steps that were done before this process started.
    """

    def __init__(self, total: int, start: int) -> None:
        self._bar: Any = None
        self._moved = -_REFRESH_SECONDS
        if sys.stderr.isatty() and not _quiet.get():
            from tqdm import tqdm

            form = "{percentage:3.0f}%|{bar}| {desc}"
            self._bar = tqdm(total=total, initial=start, dynamic_ncols=True, bar_format=form)

    def move(self, finished: int, text: Callable[[], str]) -> None:
        """Moves the bar, if there is one, to `finished` steps; ten times a second at most."""
        if self._bar is None or time.monotonic() - self._moved < _REFRESH_SECONDS:
            return
        self._moved = time.monotonic()
        self._bar.set_description_str(text(), refresh=False)
        self._bar.n = finished
        self._bar.refresh()

    def log(self, text: str) -> None:
        """Prints a line, if no bar shows the text."""
        if self._bar is None:
            say(text)

    def close(self, finished: int, text: str) -> None:
        """Closes the bar, if there is one, with its last state."""
        if self._bar is not None:
            self._moved = -_REFRESH_SECONDS
            self.move(finished, lambda: text)
            self._bar.close()


def each(
    items: Iterable[Any], what: str, *, total: int | None = None, delay: float = 0.0
) -> Iterator[Any]:
    """Yields the items; on a terminal a bar with the text `what` shows the progress.

    Args:
      items: the items.
      what: text of the bar.
      total: number of items; None for a sequence.
      delay: seconds after which the bar appears, so that short work shows none.
    """
    if not sys.stderr.isatty() or _quiet.get():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=what, total=total, delay=delay, leave=False, dynamic_ncols=True)


def clock(seconds: float) -> str:
    """A time as hours, minutes and seconds; ``?`` for a time that is not known yet, NaN."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


_said: set[str] = set()


def say_once(text: str) -> None:
    """`say`, but each text once in a process; what was muted is not counted."""
    if not _quiet.get() and text not in _said:
        _said.add(text)
        say(text)


def say(text: str) -> None:
    """Prints a line on standard error immediately, above a progress bar if one is shown."""
    if _quiet.get():
        return
    text = shown(text, lines=True)
    if "tqdm" in sys.modules and sys.stderr.isatty():
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)

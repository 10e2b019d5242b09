"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from finetune_jax.tables import shown

_quiet = contextvars.ContextVar("quiet", default=False)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """In this context, `say` prints nothing and no progress bar is drawn."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class Progress:
    """Progress of training: loss, examples per second and the time that is left.

    On a terminal the progress is a bar; elsewhere `update` prints one line for each call with
    metrics.

    Args:
      total: number of steps of the run.
      start: number of steps that were done before this process started.
      batch_size: examples per step, from which the throughput is computed.
    """

    def __init__(self, total: int, start: int, batch_size: int) -> None:
        self._total, self._start, self._batch_size = total, start, batch_size
        self._began = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and not _quiet.get():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def update(self, step: int, metrics: dict[str, float] | None = None) -> None:
        """Shows that `step` steps are done, and the metrics if there are any."""
        rate = (step - self._start) * self._batch_size / (time.monotonic() - self._began)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if metrics:
                self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {rate:.0f}/s")
        elif metrics:
            left = (self._total - step) * self._batch_size / max(rate, 1e-9)
            shown = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k != "grad_norm")
            say(f"step {step}/{self._total}  {shown}  {rate:.0f}/s  {_clock(left)} left")

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


def each(items: Sequence[Any], what: str) -> Iterator[Any]:
    """Yields the items; on a terminal a bar with the text `what` shows the progress."""
    if not sys.stderr.isatty() or _quiet.get():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=what, leave=False, dynamic_ncols=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def say(text: str) -> None:
    """Prints a line on standard error immediately, above a progress bar if one is shown."""
    if _quiet.get():
        return
    text = shown(text, lines=True)
    if "tqdm" in sys.modules and sys.stderr.isatty():
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)

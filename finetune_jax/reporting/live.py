"""Progress of an ablation: a live table with a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from finetune_jax.metrics import names
from finetune_jax.progress import muted


class Live:
    """Shows the progress of each row; a context in which the runs themselves print nothing.

    Args:
      names: names of the rows, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._rows: dict[str, dict[str, Any]] = {
            name: {"ended": 0, "failed": 0, "last": "", "point": ""} for name in names
        }
        self._what, self._total, self._ended, self._began = "", 0, 0, time.monotonic()
        self._live: Any = None
        self._muted = muted()

    def __enter__(self) -> Live:
        self._muted.__enter__()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live as RichLive

            self._live = RichLive(console=Console(stderr=True), refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)
        self._muted.__exit__(kind, error, trace)

    def expect(self, what: str, count: int) -> None:
        """Starts a count of `count` arms; `what` is the operation, ``train`` or ``score``."""
        self._what, self._total, self._ended = what, count, 0
        self._began = time.monotonic()
        self._draw()

    def ended(self, row: str, record: dict[str, Any] | None = None, metric: str = "") -> None:
        """Counts an arm of a row that has ended.

        Args:
          row: name of the row.
          record: record of the arm, if it was trained.
          metric: name of the validation metric that is shown.
        """
        self._ended += 1
        state = self._rows[row]
        state["ended"] += 1
        message = ""
        if record and "error" in record:
            state["failed"] += 1
            message = f"failed: {record['error']}"
        elif record:
            value = record["validation"].get(metric)
            point = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in record["point"].items())
            state["last"] = "undefined" if value is None else names.written(metric, value)
            state["point"] = point
            name = names.named(metric).name
            message = f"validation {name} {state['last']}  {point}  seed {record['seed']}"
        if self._live is None:
            print(
                f"{self._what} {self._ended}/{self._total}  {row}  {message}  {self._left()}",
                file=sys.stderr,
                flush=True,
            )
        self._draw()

    def _left(self) -> str:
        if not self._ended:
            return ""
        seconds = (time.monotonic() - self._began) / self._ended * (self._total - self._ended)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"

    def _draw(self) -> None:
        if self._live is None:
            return
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("row", "arms ended", "failed", "last validation", "of"):
            table.add_column(name, justify="left" if name in ("row", "of") else "right")
        for name, state in self._rows.items():
            table.add_row(
                name, str(state["ended"]), str(state["failed"] or ""), state["last"],
                state["point"],
            )  # fmt: skip
        line = f"{self._what} {self._ended}/{self._total}  {self._left()}"
        bar = ProgressBar(total=max(self._total, 1), completed=self._ended, width=60)
        self._live.update(Group(table, bar, line))

"""Writes the metrics of a run as lines of JSON and as TensorBoard events."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune_jax.files import plain

OnMetrics = Callable[[int, str, dict[str, Any]], None]
"""A function of (step, split, metrics), called for every line of ``metrics.jsonl``."""

TIMES = ("seconds", "examples_per_second")
"""Metrics that differ between two equal runs."""


def rows_without_times(path: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` without `TIMES`, which are equal with and without a resume."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and to TensorBoard events in a run folder.

    Args:
      workdir: run folder; None writes nothing.
      tensorboard: whether to write TensorBoard events.
      resume_step: step of the checkpoint that the run continues from. Lines of later steps, which
        were written before a crash, are removed. None removes all lines.
      on_metrics: called for every line that is written; None calls nothing.
    """

    def __init__(
        self,
        workdir: Path | None,
        *,
        tensorboard: bool,
        resume_step: int | None = None,
        on_metrics: OnMetrics | None = None,
    ) -> None:
        self._on_metrics = on_metrics
        self._file = self._events = None
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        kept = []
        if path.exists() and resume_step is not None:
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                    # Test scores come after the last step, so the run writes them again.
                    if row["step"] <= resume_step and row["split"] != "test":
                        # An older version wrote NaN, which is no JSON.
                        kept.append(json.dumps(plain(row), allow_nan=False))
                except (ValueError, KeyError):
                    continue  # the last line of a killed run
        # Written to another file and renamed, so that a crash here loses no line.
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")
        if tensorboard:
            self._events = _EventFile(workdir, resume_step or 0)

    def write(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Writes the metrics of a split at a step, as one line ``{"step", "split", **metrics}``.

        A metric that is undefined, NaN or infinite, is null in the line.
        """
        if self._file:
            row = plain({"step": step, "split": split, **metrics})
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            if self._on_metrics:
                self._on_metrics(step, split, metrics)
        if self._events:
            for name, value in metrics.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._events.scalar(f"{split}/{name}", value, step)
            self._events.flush()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()


class _EventFile:
    """A file of TensorBoard events, written by the calling thread.

    The writer of tensorboardX uses a thread, which a full disk ends; then its queue fills, and the
    run waits for ever.

    Args:
      folder: folder of the file.
      first: number of steps that were done before; events of later steps are ignored.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._summary, self._event = summary, Event
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{first}")
        if first:
            begin = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=first, session_log=begin))

    def scalar(self, name: str, value: float, step: int) -> None:
        scalar = self._summary.scalar(name, value)
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=scalar))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

"""How far a run is, how fast it goes and how long it will take, from the steps that have ended.

A step is dispatched long before the devices have computed it, so the number of the dispatched step
says nothing about the time that is left.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

import jax

from finetune_jax.training.step import Metrics

_AHEAD = 4
"""Dispatched steps that may wait on the devices: enough that the devices never wait for the host,
and few enough that the step that is shown is a recent one."""

_WINDOW = 30.0
"""Seconds of training over which the speed that the bar shows is measured."""

_FORWARD_SHARE = 1 / 3
"""Time to evaluate an example as a share of the time to train on one, before it is measured."""

_MOST_STEPS_A_ROW = 50
_LEAST_ROWS = 20


def log_interval(every_steps: int, total: int) -> int:
    """Steps between two logs.

    Args:
      every_steps: ``config.log.every_steps``; 0 gives at least twenty logs in a run, if the run has
        twenty steps, and a log every 50 steps in a long run.
      total: steps of the run.
    """
    return every_steps or max(1, min(_MOST_STEPS_A_ROW, total // _LEAST_ROWS))


def evaluations_left(step: int, stops: Sequence[int], every: int) -> int:
    """Number of evaluations after a step: every `every` steps, and at the end of each phase.

    Args:
      step: number of steps that are done.
      stops: steps at which the trained phases end, in rising order.
      every: steps between two evaluations.
    """
    found = 0
    for stop in stops:
        if stop > step:
            found += stop // every - step // every + (stop % every > 0)
            step = stop
    return found


class Pace:
    """The progress of a run in one process.

    Args:
      start: number of steps that were done before.
      total: number of steps of the run.
      batch_size: examples of a step.
      stops, every: see `evaluations_left`.
      validation: examples of an evaluation; 0 without a validation split.
      scored: examples that are scored after the last step.
    """

    def __init__(
        self,
        start: int,
        total: int,
        batch_size: int,
        *,
        stops: Sequence[int] = (),
        every: int = 1,
        validation: int = 0,
        scored: int = 0,
    ) -> None:
        self._start = self._finished = start
        self._total, self._batch_size = total, batch_size
        self._stops, self._every = stops, every
        self._validation, self._scored = validation, scored
        self._waiting: deque[tuple[int, jax.Array]] = deque()
        self._began = time.perf_counter()
        self._paused = 0.0
        self._pause: float | None = None
        # The first step of a process waits for programs to be loaded or compiled, and for the first
        # batches; the clock starts when that step has ended.
        self._samples: deque[tuple[float, int]] = deque()
        self._evaluation = math.inf  # seconds of the fastest evaluation after the first
        self._evaluations = 0  # of this process; the first compiles

    def note(self, number: int, metrics: Metrics) -> None:
        """Remembers a dispatched step; waits for the step that was dispatched some steps before.

        Args:
          number: number of steps that are done once this step has ended.
          metrics: metrics of the step, on the devices.
        """
        self._waiting.append((number, next(iter(metrics.values()))))
        if len(self._waiting) > _AHEAD:
            jax.block_until_ready(self._waiting[0][1])
        self._collect()

    def _collect(self) -> None:
        while self._waiting and self._waiting[0][1].is_ready():  # type: ignore[attr-defined]
            self._finished = self._waiting.popleft()[0]
        now = self._busy()
        if not self._samples:
            if self._finished > self._start:
                self._samples.append((now, self._finished))
            return
        if now - self._samples[-1][0] >= _WINDOW / 60:
            self._samples.append((now, self._finished))
        while now - self._samples[0][0] > _WINDOW and len(self._samples) > 2:
            self._samples.popleft()

    @property
    def finished(self) -> int:
        """Number of steps that the devices have computed."""
        self._collect()
        return self._finished

    def ended(self, number: int) -> None:
        """Notes that the devices have computed step `number`, because its metrics were read."""
        while self._waiting and self._waiting[0][0] <= number:
            self._finished = self._waiting.popleft()[0]
        self._collect()

    def pause(self) -> None:
        """Stops the clock of the steps, once all noted steps have ended, for an evaluation."""
        for _, value in self._waiting:
            jax.block_until_ready(value)
        self._collect()
        self._pause = time.perf_counter()

    def resume(self) -> None:
        """Lets the clock of the steps run on after an evaluation, whose time is remembered."""
        if self._pause is not None:
            seconds = time.perf_counter() - self._pause
            self._paused += seconds
            if self._evaluations:
                self._evaluation = min(self._evaluation, seconds)
            self._evaluations += 1
            self._pause = None

    def _busy(self) -> float:
        return time.perf_counter() - self._began - self._paused

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, over the last half minute; NaN before the second step has ended."""
        if not self._samples:
            return math.nan
        (began, first), now = self._samples[0], self._busy()
        steps = self.finished - first
        return (now - began) / steps if steps else math.nan

    @property
    def examples_per_second(self) -> float:
        """Training examples per second, over the last half minute of training."""
        return self._batch_size / self.step_seconds

    @property
    def seconds_left(self) -> float:
        """Time to the end of the run with its evaluations; NaN before the second step has ended.

        Until a second evaluation has been timed, an example of an evaluation is taken to cost a
        third of a training example.
        """
        example = _FORWARD_SHARE * self.step_seconds / self._batch_size
        if self._validation and math.isfinite(self._evaluation):
            example = self._evaluation / self._validation
        count = evaluations_left(self.finished, self._stops, self._every)
        evaluated = count * self._validation + self._scored
        return (self._total - self.finished) * self.step_seconds + evaluated * example

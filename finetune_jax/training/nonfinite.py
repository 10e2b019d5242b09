"""Steps that are not finite or diverge: how a run finds them and reacts (``train.on_nan``).

A step is bad if its loss, the norm of its gradient or the state after it holds NaN or infinity, or
if its loss is above `DIVERGED` times the larger of 1 and the run's first loss. The steps are
checked where the run reads their results anyway: when it logs, evaluates and saves. NaN in the
state stays in the state, so no checkpoint and no score can be made from this state. A second pass
from the latest checkpoint, in which every step is checked, finds the first bad step. A run without
bad steps computes nothing in addition.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.progress import say
from finetune_jax.training.state import State
from finetune_jax.training.step import Metrics

DIVERGED = 1e6
"""A loss above this multiple of the larger of 1 and the run's first loss is a divergence."""

REMEDY = "lower optimizer.learning_rate, add warm-up, or set optimizer.clip_norm"


class GoBack(Exception):
    """A run goes back to its latest checkpoint; `loop.steps` catches this.

    Attributes:
      search_until: step up to which every step is checked, to find the first bad step; 0 for no
        search.
      searches: number of searches so far.
      left_out: see `Watch`.
    """

    def __init__(self, search_until: int, searches: int, left_out: list[list[int]]) -> None:
        super().__init__("the run goes back to its latest checkpoint")
        self.search_until = search_until
        self.searches = searches
        self.left_out = left_out


@dataclasses.dataclass
class Watch:
    """The record of a run's bad steps. Checkpoints hold `to_json`.

    Attributes:
      policy: ``train.on_nan``.
      limit: ``train.nan_limit``.
      first_loss: loss of the first step of the run; None before it is known.
      left_out: pairs [step, count]: after this step, the run left out this number of batches
        (``back_up``).
      skipped: steps whose update was dropped (``skip``).
      search_until: see `GoBack`.
      searches: see `GoBack`.
    """

    policy: str = "stop"
    limit: int = 10
    first_loss: float | None = None
    left_out: list[list[int]] = dataclasses.field(default_factory=list)
    skipped: list[int] = dataclasses.field(default_factory=list)
    search_until: int = 0
    searches: int = 0
    _first: jax.Array | None = None
    _flags: list[tuple[int, jax.Array]] = dataclasses.field(default_factory=list)

    @classmethod
    def resume(
        cls, settings: ml_collections.ConfigDict, meta: dict[str, Any] | None, back: GoBack | None
    ) -> Watch:
        """The record at the start of a pass.

        Args:
          settings: ``config.train``.
          meta: meta data of the checkpoint to continue from, if there is one.
          back: why the pass before ended early; None for the first pass of a process.
        """
        # A checkpoint of an older version has no such entry.
        saved: dict[str, Any] = {"first_loss": None, "skipped": [], "left_out": []}
        saved |= (meta or {}).get("nonfinite", {})
        watch = cls(settings.on_nan, settings.nan_limit, **saved)
        if back:
            watch.search_until, watch.searches = back.search_until, back.searches
            watch.left_out = back.left_out
        return watch

    def to_json(self) -> dict[str, Any]:
        """``first_loss``, ``skipped`` and ``left_out``, for the meta data of a checkpoint."""
        return {
            "first_loss": self.first_loss,
            "skipped": list(self.skipped),
            "left_out": [list(pair) for pair in self.left_out],
        }

    @property
    def shift(self) -> int:
        """Number of batches that were left out so far: step n reads batch n + shift."""
        return sum(count for _, count in self.left_out)

    def searching(self, number: int) -> bool:
        """Whether step `number` is checked by itself."""
        return number <= self.search_until

    def note(self, number: int, metrics: Metrics) -> None:
        """Remembers results of a step on device, without waiting for them."""
        if self.first_loss is None and self._first is None:
            self._first = metrics["loss"]
        if "skipped" in metrics:
            self._flags.append((number, metrics["skipped"]))

    def problem(self, metrics: Metrics, state: State | None) -> str | None:
        """Why a step is bad; None for a step that is not.

        Args:
          metrics: metrics of the step.
          state: state after the step; None looks at the metrics alone.
        """
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if self._first is not None:
            first, self._first = float(self._first), None
            # After a first step that was skipped, the next one is the first.
            self.first_loss = first if math.isfinite(first) else None
        if not ("skipped" in metrics and float(metrics["skipped"])):
            if not math.isfinite(loss):
                return f"the loss is {loss}"
            if not math.isfinite(norm):
                return f"the norm of the gradient is {norm} and the loss is {loss:.4g}"
            start = self.first_loss
            if start is not None and loss > DIVERGED * max(1.0, start):
                return (
                    f"the loss is {loss:.4g}, a divergence: above {DIVERGED:g} times the larger of "
                    f"1 and the first loss, {start:.4g}"
                )
        path = None if state is None else tree.first_nonfinite(state)
        return path and f"the loss is {loss:.4g}, and {path} holds NaN or infinity"

    def newly_skipped(self) -> list[int]:
        """Steps whose update was dropped since the last call; they are added to `skipped`."""
        flags = jax.device_get([flag for _, flag in self._flags])
        new = [number for (number, _), flag in zip(self._flags, flags, strict=True) if flag]
        self._flags.clear()
        self.skipped += new
        return new

    def search(self, number: int, problem: str, start: int | None) -> GoBack:
        """The reaction to a bad step that was found at a log, an evaluation or a checkpoint.

        Args:
          number: step at which it was found.
          problem: see the method `problem`.
          start: step of the latest checkpoint, if there is one.

        Raises:
          UserError: several searches have found nothing.
        """
        where = f"the checkpoint at step {start}" if start else "the start"
        if self.searches >= self.limit:
            raise UserError(
                f"{problem} at step {number}; {self.searches} passes from {where} found other "
                f"values each time, so the steps on these devices are not deterministic; {REMEDY}"
            )
        say(f"step {number}: {problem}; computing again from {where} to find the first bad step")
        return GoBack(number, self.searches + 1, self.left_out)

    def back_up(self, number: int, problem: str, start: int | None) -> GoBack:
        """The reaction of ``back_up`` to a bad step: leaves out the batches up to this step.

        Args:
          number: first bad step.
          problem: see the method `problem`.
          start: step of the latest checkpoint, if there is one.

        Raises:
          UserError: the run has gone back `limit` times.
        """
        if len(self.left_out) >= self.limit:
            raise UserError(
                f"{problem} at step {number}, and the run has already gone back "
                f"{len(self.left_out)} times (train.nan_limit); {REMEDY}"
            )
        at = start or 0
        say(
            f"step {number}: {problem}; back to step {at}, and {number - at} batches are left out "
            f"({len(self.left_out) + 1} of at most {self.limit} returns)"
        )
        return GoBack(0, 0, [*self.left_out, [at, number - at]])


def longest_row(numbers: Iterable[int]) -> int:
    """Length of the longest row of consecutive numbers among ascending numbers."""
    longest = row = 0
    last: int | None = None
    for number in numbers:
        row = row + 1 if last is not None and number == last + 1 else 1
        longest, last = max(longest, row), number
    return longest

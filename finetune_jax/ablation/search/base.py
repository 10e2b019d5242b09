"""What every search over hyper-parameters has in common: proposals, trials, and the best trial.

A search is a function of the trials so far: asked again after a crash, it continues where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.study import RowSpec


@dataclasses.dataclass(frozen=True)
class Trial:
    """A point that was tried.

    Attributes:
      point: hyper-parameters.
      share: share of the full training length that the point was trained for, in (0, 1].
      value: mean validation score over seeds, where more is better; None if an arm failed.
    """

    point: Overrides
    share: float
    value: float | None

    @property
    def sort_key(self) -> float:
        """`value`, or minus infinity if an arm failed."""
        return -math.inf if self.value is None else self.value


class Proposal(NamedTuple):
    """A point to try next.

    Attributes:
      point: hyper-parameters.
      share: share of the full training length to train the point for, in (0, 1].
    """

    point: Overrides
    share: float


class Search(Protocol):
    """A strategy that chooses which points to try, with the same budget for all rows of a table."""

    def propose(self, row: RowSpec, trials: Mapping[str, Sequence[Trial]]) -> list[Proposal]:
        """The points to try next for one row; an empty list when the search is finished.

        Args:
          row: the row to tune.
          trials: trials so far by row name, for all rows of the table of `row`. `propose` is called
            for every row before any proposal is trained, and again when all proposals have ended.
        """


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The best trial of full length; the earliest of equal trials. None if all trials failed."""
    complete = [trial for trial in trials if trial.share == 1.0 and trial.value is not None]
    return max(complete, key=lambda trial: trial.sort_key, default=None)


def budget(trials: Sequence[Trial]) -> float:
    """Cost of the trials per seed, in runs of full length."""
    return math.fsum(trial.share for trial in trials)


def edges(point: Overrides, points: Sequence[Overrides]) -> dict[str, int]:
    """The numeric keys in which `point` has the smallest (-1) or the largest (1) value tried.

    Keys with only one value among `points` have no edge.
    """
    found = {}
    for key, value in point.items():
        values = numeric_values(points, key)
        if len(values) > 1 and value in (values[0], values[-1]):
            found[key] = -1 if value == values[0] else 1
    return found


def numeric_values(points: Sequence[Overrides], key: str) -> list[float]:
    """The distinct values of a key in ascending order; empty if a value is not a number."""
    values = []
    for point in points:
        value = point.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return []
        values.append(value)
    return sorted(set(values))

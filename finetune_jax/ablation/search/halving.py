"""Successive halving: many short runs, few long runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.search.base import Proposal, Trial
from finetune_jax.ablation.study import RowSpec
from finetune_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar 2016).

    All points train for a share of the full length. The best points train again from the start for
    `factor` times as long, and so on; the points of the last rung train for the full length.

    Attributes:
      factor: by which each rung is longer than the rung before and has fewer points, at least 2.
      rungs: number of different lengths, at least 1.
    """

    factor: int = 3
    rungs: int = 3

    def __post_init__(self) -> None:
        for name, least in (("factor", 2), ("rungs", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"halving: {name} must be a whole number >= {least}, found {value!r}"
                )

    def propose(self, row: RowSpec, trials: Mapping[str, Sequence[Trial]]) -> list[Proposal]:
        """See `Search`."""
        points = list(row.points)
        for rung in range(self.rungs):
            share = float(self.factor) ** (rung + 1 - self.rungs)
            of_rung = [trial for trial in trials.get(row.name, ()) if trial.share == share]
            tried = [trial.point for trial in of_rung]
            missing = [point for point in points if point not in tried]
            if missing:
                return [Proposal(point, share) for point in missing]
            points = _survivors(of_rung, math.ceil(len(points) / self.factor))
        return []


def _survivors(trials: Sequence[Trial], count: int) -> list[Overrides]:
    """The points of the best trials, best first; failed trials come last."""
    ranked = sorted(trials, key=lambda trial: -trial.sort_key)
    return [trial.point for trial in ranked[:count]]

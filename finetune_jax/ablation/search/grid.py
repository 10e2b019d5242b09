"""Grid search, which continues beyond the ends of the grid where a row is best there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from finetune_jax.ablation.axes import Overrides, over, product
from finetune_jax.ablation.search.base import Proposal, Trial, best_trial, edges, numeric_values
from finetune_jax.ablation.study import RowSpec
from finetune_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Grid:
    """Tries every point; then, while a row of the table is best at an end, points beyond that end.

    New points beyond the same end are tried for every row of the table, so that all rows have the
    same budget, also if each row has values of its own. A
    set of points that is not the full product of the values of its keys is not extended.

    Attributes:
      extend: how many times the grid may be extended.
    """

    extend: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.extend, int) or self.extend < 0:
            raise UserError(f"grid: extend must be a whole number >= 0, found {self.extend!r}")

    def propose(self, row: RowSpec, trials: Mapping[str, Sequence[Trial]]) -> list[Proposal]:
        """See `Search`."""
        points = list(row.points)
        tried = [trial.point for trial in trials.get(row.name, ())]
        for _ in range(self.extend + 1):
            missing = [point for point in points if point not in tried]
            if missing:
                return [Proposal(point, 1.0) for point in missing]
            extended = _extended(points, trials)
            if extended == points:
                break
            points = extended
        return []


def _extended(points: list[Overrides], trials: Mapping[str, Sequence[Trial]]) -> list[Overrides]:
    """The points, and new points beyond each end at which a row of the table is best."""
    values = {key: list(dict.fromkeys(point[key] for point in points)) for key in points[0]}
    if len(points) != math.prod(map(len, values.values())):
        return points
    for key, sides in _best_edges(points, trials).items():
        numbers = numeric_values(points, key)
        for side in sides:
            end, neighbour = (numbers[0], numbers[1]) if side < 0 else (numbers[-1], numbers[-2])
            values[key].append(_beyond(end, neighbour))
    grid = product(*(over(key, of_key) for key, of_key in values.items()))
    return points + [point for point in grid if point not in points]


def _best_edges(
    points: list[Overrides], trials: Mapping[str, Sequence[Trial]]
) -> dict[str, set[int]]:
    """By key, the ends (-1 lowest, 1 highest) at which some row of the table is best."""
    found: dict[str, set[int]] = {}
    for of_row in trials.values():
        # A row may have other values, such as rates of its own, but has as many points. Only the
        # trials of these points count: later trials must not change the result.
        first = of_row[: len(points)]
        best = best_trial(first)
        if best is not None:
            for key, side in edges(best.point, [trial.point for trial in first]).items():
                found.setdefault(key, set()).add(side)
    return found


def _beyond(end: float, neighbour: float) -> float:
    """The next value after `end`: with the ratio of the last two values if both are positive, else
    with their difference."""
    if end > 0 and neighbour > 0:
        return float(f"{end * end / neighbour:.3g}")
    return 2 * end - neighbour

"""Which points of its hyper-parameters each row tries, with the same budget for all rows.

A search is a function of what has been tried: asked again after a crash, it goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from finetune_jax.ablation.axes import Overrides, over, product
from finetune_jax.ablation.study import Line
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import parse


@dataclasses.dataclass(frozen=True)
class Trial:
    """A point that was tried.

    Attributes:
      point: hyper-parameters.
      share: of the whole training length it was trained for, in (0, 1].
      value: mean validation score over seeds, more is better; None if an arm failed.
    """

    point: Overrides
    share: float
    value: float | None


Wish = tuple[Overrides, float]
"""A point, and the share of the whole training length to train it for."""


class Search(Protocol):
    """A way to search."""

    def ask(self, line: Line, tried: Mapping[str, Sequence[Trial]]) -> list[Wish]:
        """What to try next for one row; nothing when it is done.

        Args:
          line: the row.
          tried: by name of row, those of the same table; `ask` is called for every row before any
            of the answers is tried, and again when all are.
        """


def parse_search(text: str) -> Search:
    """The search that a text such as ``halving(factor=3, rungs=3)`` names.

    Raises:
      UserError: unknown name or argument, or a value out of range.
    """
    calls = parse(text)
    makers = {"grid": Grid, "halving": Halving, "optuna": _optuna}
    if len(calls) != 1 or calls[0].name not in makers:
        raise UserError(f"search: unknown search {text!r}.{nearest(calls[0].name, makers)}")
    call = calls[0]
    try:
        return makers[call.name](*call.args, **dict(call.kwargs))
    except TypeError as error:
        raise UserError(f"search={text!r}: {error}") from None


def _optuna(*args: Any, **kwargs: Any) -> Search:
    from finetune_jax.ablation.search_optuna import OptunaSearch

    return OptunaSearch(*args, **kwargs)


def best(trials: Sequence[Trial]) -> Trial | None:
    """The best of the trials of whole length; the first tried of equals. None if all failed."""
    whole = [t for t in trials if t.share == 1.0 and t.value is not None]
    return max(whole, key=lambda t: t.value) if whole else None


def budget(trials: Sequence[Trial]) -> float:
    """Runs of whole length that tuning took, per seed."""
    return math.fsum(t.share for t in trials)


def edges(point: Overrides, points: Sequence[Overrides]) -> dict[str, int]:
    """The numeric keys in which `point` is least (-1) or greatest (1) of at least two values."""
    found = {}
    for key, value in point.items():
        values = _numbers(points, key)
        if len(values) > 1 and value in (values[0], values[-1]):
            found[key] = -1 if value == values[0] else 1
    return found


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every point; then, while a row of the table is best at an end, further points beyond it.

    The new points are tried for every row of the table, so that budgets stay equal. Points that are
    no full product of their keys are not extended.

    Attributes:
      extend: how many times.
    """

    extend: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.extend, int) or self.extend < 0:
            raise UserError(f"grid: extend must be a whole number >= 0, found {self.extend!r}")

    def ask(self, line: Line, tried: Mapping[str, Sequence[Trial]]) -> list[Wish]:
        """See `Search`."""
        points = list(line.points)
        for _ in range(self.extend + 1):
            own = _points_of(tried.get(line.name, ()))
            missing = [point for point in points if point not in own]
            if missing:
                return [(point, 1.0) for point in missing]
            wider = self._wider(points, tried)
            if wider == points:
                break
            points = wider
        return []

    @staticmethod
    def _wider(points: list[Overrides], tried: Mapping[str, Sequence[Trial]]) -> list[Overrides]:
        """The points, and those beyond each end at which a row is best."""
        ends: dict[str, set[int]] = {}
        for trials in tried.values():
            # As it was when these points had been tried: asked later, the answer is the same.
            chosen = best([t for t in trials if t.point in points])
            if chosen is not None:
                for key, side in edges(chosen.point, points).items():
                    ends.setdefault(key, set()).add(side)
        values = {key: dict.fromkeys(p[key] for p in points) for key in points[0]}
        if len(points) != math.prod(len(v) for v in values.values()):
            return points
        new = {key: list(v) for key, v in values.items()}
        for key, sides in ends.items():
            numbers = _numbers(points, key)
            for side in sides:
                end, neighbour = (
                    (numbers[0], numbers[1]) if side < 0 else (numbers[-1], numbers[-2])
                )
                new[key].append(_beyond(end, neighbour))
        if new == {key: list(v) for key, v in values.items()}:
            return points
        whole = product(*(over(key, v) for key, v in new.items()))
        return points + [point for point in whole if point not in points]


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar 2016): many short runs, few long ones.

    All points train for a share of the whole length; the best of them train anew for `factor` times
    as long, and so on, the last for the whole length.

    Attributes:
      factor: by which runs get longer and fewer, at least 2.
      rungs: lengths, at least 1.
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

    def ask(self, line: Line, tried: Mapping[str, Sequence[Trial]]) -> list[Wish]:
        """See `Search`."""
        own, points = tried.get(line.name, ()), list(line.points)
        for rung in range(self.rungs):
            share = float(self.factor) ** (rung + 1 - self.rungs)
            here = [t for t in own if t.share == share]
            known = _points_of(here)
            missing = [point for point in points if point not in known]
            if missing:
                return [(point, share) for point in missing]
            keep = math.ceil(len(points) / self.factor)
            ranked = sorted(here, key=lambda t: math.inf if t.value is None else -t.value)
            points = [t.point for t in ranked[:keep]]
        return []


def _points_of(trials: Sequence[Trial]) -> list[Overrides]:
    return [t.point for t in trials]


def _numbers(points: Sequence[Overrides], key: str) -> list[float]:
    """The different numbers of a key in order; empty if it has others than numbers."""
    values = [p.get(key) for p in points]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return []
    return sorted(set(values))


def _beyond(end: float, neighbour: float) -> float:
    """The next value after `end` in steps of one ratio, or of one difference if there is a 0."""
    if end > 0 and neighbour > 0:
        return float(f"{end * end / neighbour:.3g}")
    return 2 * end - neighbour

"""How sure the comparisons in a table are: intervals, paired tests, and what each row costs.

Intervals are over seeds: they say how much a row varies when it is trained again and tested on the
same examples. Whether two rows answer the same examples differently is a test of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune_jax.ablation.answers import read_answers
from finetune_jax.ablation.outcome import Outcome, Row
from finetune_jax.errors import UserError
from finetune_jax.metrics.paired import holm

COSTS = ("trainable", "step_flops")
"""Attributes of `Cost` that a row is weighed by."""

LEVEL = 0.05
"""Of the adjusted p-value below which a row counts as better than another."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score of a row.

    Attributes:
      value: mean over seeds; nan if there is none.
      low: end of the 95 % interval; nan if there is none.
      high: likewise.
      seeds: how many. With several the interval is Student's t over them; with one it is the
        task's own, over examples.
    """

    value: float
    low: float
    high: float
    seeds: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row minus the reference, paired.

    Attributes:
      value: mean over the seeds that both have; nan if there is none.
      low: end of the 95 % t interval; nan below two seeds.
      high: likewise.
      seeds: how many are common.
      p_seeds: two-sided, of the paired t-test over seeds; nan below two, and where all seeds have
        one and the same difference, which leaves no spread to judge it by.
      p_seeds_holm: adjusted over the rows of the table.
      p_examples: two-sided, of McNemar's test or the paired bootstrap over examples.
      p_examples_holm: adjusted over the rows of the table.
    """

    value: float
    low: float
    high: float
    seeds: int
    p_seeds: float
    p_seeds_holm: float
    p_examples: float
    p_examples_holm: float


@dataclasses.dataclass(frozen=True)
class Compared:
    """A row among the others of its table.

    Attributes:
      row: it.
      score: of the outcome's metric on the test split.
      difference: to the reference; None of the reference itself, and without scores.
      front: those of `COSTS` for which no row is as cheap and as good and better in one of the two.
      dominated_by: labels of rows at most as costly in all of `COSTS` and better, with a p-value
        over examples below `LEVEL` after Holm's adjustment over all pairs of the table.
    """

    row: Row
    score: Estimate
    difference: Difference | None
    front: tuple[str, ...]
    dominated_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A table of an outcome.

    Attributes:
      name: of the table; empty if there is one.
      reference: label of the row that others are compared with.
      test: over examples, such as ``McNemar's test``; empty if there is none.
      budget: runs of whole length that tuning took of every row.
      rows: in the outcome's order.
    """

    name: str
    reference: str
    test: str
    budget: float
    rows: tuple[Compared, ...]


def compare(outcome: Outcome) -> list[Comparison]:
    """Every table of an outcome.

    Raises:
      UserError: rows of one table had different budgets, or were tested on different examples.
    """
    return [_compare(name, rows, outcome) for name, rows in outcome.tables.items()]


def estimate(scores: Mapping[int, Mapping[str, Any]], metric: str) -> Estimate:
    """Mean and 95 % interval of a metric over seeds.

    Args:
      scores: by seed; a seed whose score is undefined is left out.
      metric: name of the score.
    """
    known = [found for found in scores.values() if defined(found.get(metric))]
    values = [float(found[metric]) for found in known]
    if len(values) != 1:
        return Estimate(*t_interval(values), len(values))
    ends = (known[0].get(f"{metric}_{end}") for end in ("low", "high"))
    return Estimate(values[0], *(float(end) if defined(end) else math.nan for end in ends), 1)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t.

    Args:
      values: of independent runs; without any all is nan, with one the interval is.
      level: of the interval.
    """
    from scipy.stats import t

    if len(values) < 2:
        return (float(values[0]) if values else math.nan), math.nan, math.nan
    mean, error = _mean_and_error(values)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def t_test(values: Sequence[float]) -> float:
    """Two-sided p-value that the mean of differences is 0; see `Difference.p_seeds`."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    mean, error = _mean_and_error(values)
    if not error:
        return math.nan if mean else 1.0
    return float(2 * t.sf(abs(mean) / error, len(values) - 1))


def defined(value: Any) -> bool:
    """Whether a score is a number; JSON has null for those that are not."""
    return value is not None and math.isfinite(value)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; rounding alone counts as no spread."""
    numbers = np.asarray(values, np.float64)
    spread = float(numbers.std(ddof=1))
    # Equal differences of scores near 1 are apart by some 1e-16.
    rounding = 1e-9 * float(np.abs(numbers).max())
    return float(numbers.mean()), 0.0 if spread <= rounding else spread / math.sqrt(len(numbers))


def _compare(name: str, rows: Sequence[Row], outcome: Outcome) -> Comparison:
    _require_one_budget(name, rows)
    metric, sign = outcome.metric, 1 if outcome.better == "max" else -1
    labels = [row.line.label for row in rows]
    reference = rows[labels.index(outcome.reference) if outcome.reference in labels else 0]
    answered = read_answers(rows, metric)
    scores = {row.line.name: estimate(row.test, metric) for row in rows}
    pairs = [
        (one, two)
        for one, two in itertools.combinations(rows, 2)
        if _differences(one, two, metric).size
    ]
    raw = {(a.line.name, b.line.name): answered.p_value(a, b) for a, b in pairs}
    adjusted = dict(zip(raw, _holm(list(raw.values())), strict=True))

    def beats(one: Row, two: Row) -> bool:
        """Whether the first is surely better and at most as costly."""
        names = (one.line.name, two.line.name)
        p = adjusted.get(names, adjusted.get(names[::-1], math.nan))
        if not p < LEVEL or not sign * _differences(one, two, metric).mean() > 0:
            return False
        if one.cost is None or two.cost is None:
            return False
        return all(getattr(one.cost, cost) <= getattr(two.cost, cost) for cost in COSTS)

    gaps = {row.line.name: _differences(row, reference, metric) for row in rows}
    compared = [row for row in rows if row is not reference and gaps[row.line.name].size]
    p_seeds = [t_test(gaps[row.line.name].tolist()) for row in compared]
    p_examples = [
        raw.get((row.line.name, reference.line.name), raw.get((reference.line.name, row.line.name)))
        for row in compared
    ]
    differences = {
        row.line.name: Difference(
            *t_interval(gaps[row.line.name].tolist()), gaps[row.line.name].size, *p_values
        )
        for row, *p_values in zip(
            compared, p_seeds, _holm(p_seeds), p_examples, _holm(p_examples), strict=True
        )
    }
    fronts = {cost: pareto([(r, scores[r.line.name].value) for r in rows], cost, sign)
              for cost in COSTS}  # fmt: skip
    return Comparison(
        name=name,
        reference=reference.line.label,
        test=answered.test,
        budget=rows[0].budget,
        rows=tuple(
            Compared(
                row=row,
                score=scores[row.line.name],
                difference=differences.get(row.line.name),
                front=tuple(cost for cost in COSTS if row.line.name in fronts[cost]),
                dominated_by=tuple(x.line.label for x in rows if x is not row and beats(x, row)),
            )
            for row in rows
        ),
    )


def pareto(rows: Sequence[tuple[Row, float]], cost: str, sign: int) -> set[str]:
    """Names of the rows that no other is at least as good as and as cheap as, and better in one.

    Args:
      rows: with their scores; those without one are never on the front.
      cost: attribute of `Cost`.
      sign: 1 if more is better, -1 if less is.
    """
    points = {
        row.line.name: (sign * score, -getattr(row.cost, cost))
        for row, score in rows
        if row.cost is not None and defined(score)
    }
    return {
        name
        for name, (score, thrift) in points.items()
        if not any(s >= score and t >= thrift and (s, t) != (score, thrift)
                   for s, t in points.values())
    }  # fmt: skip


def _differences(ours: Row, theirs: Row, metric: str) -> np.ndarray:
    """Ours minus theirs for every seed that both have, f64[seeds]."""
    gaps = [
        scores[metric] - theirs.test[seed][metric]
        for seed, scores in sorted(ours.test.items())
        if seed in theirs.test
        and defined(scores.get(metric))
        and defined(theirs.test[seed].get(metric))
    ]
    return np.array(gaps, np.float64)


def _holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment over those that are defined."""
    adjusted = iter(holm([p for p in p_values if not math.isnan(p)]))
    return [p if math.isnan(p) else next(adjusted) for p in p_values]


def _require_one_budget(name: str, rows: Sequence[Row]) -> None:
    budgets = {row.line.label: row.budget for row in rows}
    if not all(math.isclose(b, rows[0].budget) for b in budgets.values()):
        table = f" of the table {name!r}" if name else ""
        found = ", ".join(f"{label!r}: {budget:g}" for label, budget in budgets.items())
        raise UserError(
            f"rows{table} cannot be compared: expected one tuning budget for all, found {found}"
        )

"""Statistics of a table: intervals, paired tests, Pareto fronts and dominated rows.

Intervals are over seeds: they describe how much the score of a row varies when the row is trained
again and tested on the same examples. Whether two rows differ on the same examples is a separate
test; see `example_scores`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report.base import COSTS, ComparedRow, Comparison, Estimate
from finetune_jax.ablation.report.example_scores import ExampleScores, read_example_scores
from finetune_jax.errors import UserError
from finetune_jax.metrics.paired import holm

_Key = TypeVar("_Key")

LEVEL = 0.05
"""Adjusted p-value below which a row is significantly better than another row."""


def compare(outcome: Outcome) -> list[Comparison]:
    """Compares the rows of every table of an outcome.

    Raises:
      UserError: rows of one table had different budgets, or were tested on different examples.
    """
    return [_compare(name, rows, outcome) for name, rows in outcome.tables.items()]


def estimate(scores: Mapping[int, Mapping[str, Any]], metric: str) -> Estimate:
    """Mean and 95 % interval of a metric over seeds.

    Args:
      scores: scores by seed; a seed whose score is undefined is left out.
      metric: name of the score.
    """
    known = [found for found in scores.values() if defined(found.get(metric))]
    values = [float(found[metric]) for found in known]
    if len(values) != 1:
        return Estimate(*t_interval(values), len(values))
    low, high = (known[0].get(f"{metric}_{end}") for end in ("low", "high"))
    return Estimate(values[0], _or_nan(low), _or_nan(high), 1)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t distribution.

    Args:
      values: values of independent runs. Without values all results are nan; with one value the
        ends of the interval are nan.
      level: confidence level of the interval.
    """
    from scipy.stats import t

    if len(values) < 2:
        return (float(values[0]) if values else math.nan), math.nan, math.nan
    mean, error = _mean_and_error(values)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def t_test(values: Sequence[float]) -> float:
    """Two-sided p-value that the mean of differences is 0; nan as for `ComparedRow.p_seeds`."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    mean, error = _mean_and_error(values)
    if not error:
        return math.nan if mean else 1.0
    return float(2 * t.sf(abs(mean) / error, len(values) - 1))


def defined(value: Any) -> bool:
    """Whether a score is a finite number; undefined scores are null in JSON."""
    return value is not None and math.isfinite(value)


def pareto(rows: Sequence[tuple[TableRow, float]], cost: str, sign: int) -> set[str]:
    """Names of the rows on the Pareto front of score and cost.

    A row is on the front if no other row is at least as good and at least as cheap, and better in
    one of the two.

    Args:
      rows: rows with their scores; rows without a defined score are never on the front.
      cost: attribute of `RunCost`.
      sign: 1 if more is better, -1 if less is better.
    """
    points = {
        row.spec.name: (sign * score, -getattr(row.cost, cost))
        for row, score in rows
        if row.cost is not None and defined(score)
    }
    return {
        name
        for name, (score, thrift) in points.items()
        if not any(s >= score and t >= thrift and (s, t) != (score, thrift)
                   for s, t in points.values())
    }  # fmt: skip


def _compare(name: str, rows: Sequence[TableRow], outcome: Outcome) -> Comparison:
    _require_one_budget(name, rows)
    metric, sign = outcome.metric, 1 if outcome.better == "max" else -1
    labels = [row.spec.label for row in rows]
    reference = rows[labels.index(outcome.reference) if outcome.reference in labels else 0]
    example_scores = read_example_scores(rows, metric)
    p_values = _p_values_of_pairs(rows, metric, example_scores)
    scores = {row.spec.name: estimate(row.test, metric) for row in rows}
    differences = {
        row.spec.name: gaps.tolist()
        for row in rows
        if row is not reference and (gaps := _differences(row, reference, metric)).size
    }
    p_seeds = {name: t_test(gaps) for name, gaps in differences.items()}
    p_examples = {name: p_values[name, reference.spec.name] for name in differences}
    p_seeds_holm, p_examples_holm = _holm(p_seeds), _holm(p_examples)
    fronts = {cost: pareto([(row, scores[row.spec.name].value) for row in rows], cost, sign)
              for cost in COSTS}  # fmt: skip
    dominating = _dominating(rows, metric, sign, p_values)

    def compared(row: TableRow) -> ComparedRow:
        name = row.spec.name
        gaps = differences.get(name)
        return ComparedRow(
            row=row,
            score=scores[name],
            difference=Estimate(*t_interval(gaps), len(gaps)) if gaps else None,
            p_seeds=p_seeds.get(name, math.nan),
            p_seeds_holm=p_seeds_holm.get(name, math.nan),
            p_examples=p_examples.get(name, math.nan),
            p_examples_holm=p_examples_holm.get(name, math.nan),
            front=tuple(cost for cost in COSTS if name in fronts[cost]),
            dominated_by=dominating[name],
        )

    return Comparison(
        name=name,
        reference=reference.spec.label,
        test=example_scores.test,
        budget=rows[0].budget,
        rows=tuple(map(compared, rows)),
    )


_Pair = tuple[str, str]
"""Names of two rows."""


def _p_values_of_pairs(
    rows: Sequence[TableRow], metric: str, example_scores: ExampleScores
) -> dict[_Pair, float]:
    """The p-value over examples of each pair of rows with common seeds, in both orders."""
    found: dict[_Pair, float] = {}
    for one, two in itertools.combinations(rows, 2):
        if _differences(one, two, metric).size:
            p_value = example_scores.p_value(one, two)
            found[one.spec.name, two.spec.name] = found[two.spec.name, one.spec.name] = p_value
    return found


def _dominating(
    rows: Sequence[TableRow], metric: str, sign: int, p_values: Mapping[_Pair, float]
) -> dict[str, tuple[str, ...]]:
    """By row name, the labels of the rows that dominate the row; see `ComparedRow.dominated_by`."""
    # The adjustment counts each pair once.
    pairs = [(a.spec.name, b.spec.name) for a, b in itertools.combinations(rows, 2)]
    adjusted = _holm({pair: p_values[pair] for pair in pairs if pair in p_values})

    def dominates(one: TableRow, two: TableRow) -> bool:
        pair = (one.spec.name, two.spec.name)
        p_value = adjusted.get(pair, adjusted.get(pair[::-1], math.nan))
        if not p_value < LEVEL or not sign * _differences(one, two, metric).mean() > 0:
            return False
        if one.cost is None or two.cost is None:
            return False
        return all(getattr(one.cost, cost) <= getattr(two.cost, cost) for cost in COSTS)

    return {
        row.spec.name: tuple(x.spec.label for x in rows if x is not row and dominates(x, row))
        for row in rows
    }


def _differences(ours: TableRow, theirs: TableRow, metric: str) -> np.ndarray:
    """Our score minus their score for every seed that both rows have, f64[seeds]."""
    gaps = [
        scores[metric] - theirs.test[seed][metric]
        for seed, scores in sorted(ours.test.items())
        if seed in theirs.test
        and defined(scores.get(metric))
        and defined(theirs.test[seed].get(metric))
    ]
    return np.array(gaps, np.float64)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the mean; a spread from rounding alone counts as 0."""
    numbers = np.asarray(values, np.float64)
    spread = float(numbers.std(ddof=1))
    # Equal differences of scores near 1 differ by about 1e-16 after rounding.
    rounding = 1e-9 * float(np.abs(numbers).max())
    return float(numbers.mean()), 0.0 if spread <= rounding else spread / math.sqrt(len(numbers))


def _or_nan(value: Any) -> float:
    return float(value) if defined(value) else math.nan


def _holm(p_values: Mapping[_Key, float]) -> dict[_Key, float]:
    """Holm's adjustment over the p-values that are defined; the others stay nan."""
    known = {key: p_value for key, p_value in p_values.items() if not math.isnan(p_value)}
    return {**p_values, **dict(zip(known, holm(list(known.values())), strict=True))}


def _require_one_budget(name: str, rows: Sequence[TableRow]) -> None:
    budgets = {row.spec.label: row.budget for row in rows}
    if not all(math.isclose(b, rows[0].budget) for b in budgets.values()):
        table = f" of the table {name!r}" if name else ""
        found = ", ".join(f"{label!r}: {budget:g}" for label, budget in budgets.items())
        raise UserError(
            f"rows{table} cannot be compared: expected one tuning budget for all, found {found}"
        )

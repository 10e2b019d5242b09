"""Statistics of a table: intervals, tests of differences, Pareto fronts and dominated rows.

Every seed of every row is tested on the same examples. From three seeds on, intervals cover both
training again and testing on other examples; see `finetune_jax.metrics.crossed`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report.base import (
    BOTH,
    COSTS,
    EXAMPLES,
    SEEDS,
    ComparedRow,
    Comparison,
    Estimate,
    PairTest,
)
from finetune_jax.ablation.report.example_scores import ExampleScores, read_example_scores
from finetune_jax.errors import UserError
from finetune_jax.metrics import crossed, names
from finetune_jax.metrics.intervals import bounded
from finetune_jax.metrics.paired import holm

_Key = TypeVar("_Key")

LEVEL = 0.05
"""Adjusted p-value below which a row is significantly better than another row."""

CROSSED = "random-effects test over seeds and examples"
MCNEMAR, BOOTSTRAP = "McNemar's test over examples", "paired bootstrap over examples"
T_TEST = "paired t-test over seeds"

COVERED = {CROSSED: BOTH, MCNEMAR: EXAMPLES, BOOTSTRAP: EXAMPLES, T_TEST: SEEDS}
"""What each test covers."""


def compare(outcome: Outcome) -> list[Comparison]:
    """Compares the rows of every table of an outcome.

    Raises:
      UserError: rows of one table had different budgets, or were tested on different examples.
    """
    return [_compare(name, rows, outcome) for name, rows in outcome.tables.items()]


def estimate(
    scores: Mapping[int, Mapping[str, Any]],
    metric: str,
    bounds: tuple[float, float],
    spread: crossed.Spread | None = None,
) -> Estimate:
    """Mean and 95 % interval of a metric over seeds.

    Args:
      scores: scores by seed; a seed whose score is undefined is left out. One seed has the interval
        that its task computed.
      metric: name of the score.
      bounds: smallest and largest possible score, which the interval does not leave.
      spread: error of the mean over several seeds; None for that over seeds alone.
    """
    known = [found for found in scores.values() if defined(found.get(metric))]
    values = [float(found[metric]) for found in known]
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if len(values) == 1:
        low, high = (_or_nan(known[0].get(f"{metric}_{end}")) for end in ("low", "high"))
        return Estimate(values[0], low, high, 1, "" if math.isnan(low) else EXAMPLES)
    spread = spread or crossed.over_seeds(values)
    mean = float(np.mean(values))
    # Over seeds alone, equal scores have an interval without width.
    examples = int(known[0].get("n_scored") or 0) if spread.examples else 0
    low, high = bounded(mean, spread.error, crossed.quantile(spread), examples, bounds)
    return Estimate(mean, low, high, len(values), _covers(spread))


def difference_of(
    gaps: Sequence[float], bounds: tuple[float, float], spread: crossed.Spread
) -> Estimate:
    """Mean difference of two rows over seeds with its 95 % interval.

    Args:
      gaps: our score minus their score with each common seed.
      bounds: smallest and largest possible score.
      spread: error of the mean.
    """
    mean, half = float(np.mean(gaps)), crossed.quantile(spread) * spread.error
    # Python's max and min would turn nan into a bound.
    width = bounds[1] - bounds[0]
    low, high = np.clip([mean - half, mean + half], -width, width).tolist()
    return Estimate(mean, low, high, len(gaps), _covers(spread))


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
    examples = read_example_scores(rows, metric)
    bounds = names.named(metric).bounds
    pairs = _pairs(rows, metric, bounds, examples)
    scores = {
        row.spec.name: estimate(row.test, metric, bounds, _spread_of(row, metric, examples))
        for row in rows
    }
    to_reference = {a: pair for (a, b), pair in pairs.items() if b == reference.spec.name}
    p_holm = _holm({name: pair.p for name, pair in to_reference.items()})
    fronts = {cost: pareto([(row, scores[row.spec.name].value) for row in rows], cost, sign)
              for cost in COSTS}  # fmt: skip
    dominating = _dominating(rows, sign, pairs)

    def compared(row: TableRow) -> ComparedRow:
        name = row.spec.name
        pair = to_reference.get(name)
        return ComparedRow(
            row=row,
            score=scores[name],
            difference=pair.difference if pair else None,
            p=pair.p if pair else math.nan,
            p_holm=p_holm.get(name, math.nan),
            test=pair.test if pair else "",
            front=tuple(cost for cost in COSTS if name in fronts[cost]),
            dominated_by=dominating[name],
        )

    return Comparison(
        name=name,
        reference=reference.spec.label,
        tests=tuple(dict.fromkeys(pair.test for pair in pairs.values() if pair.test)),
        budget=rows[0].budget,
        rows=tuple(map(compared, rows)),
        pairs=pairs,
    )


_Pair = tuple[str, str]
"""Names of two rows."""


def pair_test(
    ours: TableRow,
    theirs: TableRow,
    metric: str,
    bounds: tuple[float, float],
    examples: ExampleScores,
) -> PairTest | None:
    """The difference between two rows; None if they have no common seed with a score.

    With several seeds the test is `CROSSED`; with one seed, and where all seeds give the same
    predictions, `MCNEMAR` or `BOOTSTRAP`; without predictions, `T_TEST` from three seeds on.

    Raises:
      UserError: the rows were tested on different examples.
    """
    gaps = _differences(ours, theirs, metric)
    if not gaps:
        return None
    seeds, values = list(gaps), list(gaps.values())
    examples.require_same(ours, theirs, seeds)
    if not (examples.known(ours, seeds) and examples.known(theirs, seeds)):
        spread = crossed.over_seeds(values)
        p = crossed.p_value(float(np.mean(values)), spread)
        return PairTest(difference_of(values, bounds, spread), p, "" if math.isnan(p) else T_TEST)
    covariance = examples.covariance(ours, seeds, theirs)
    count = examples.count(ours, seeds)
    over_examples = crossed.over_examples(covariance, count)
    if len(seeds) == 1 or not examples.seeds_matter(ours, theirs, seeds):
        p = examples.p_value(ours, theirs, seeds[0])
        name = MCNEMAR if examples.exact else BOOTSTRAP
        return PairTest(difference_of(values, bounds, over_examples), p, name)
    both = crossed.over_both(values, covariance, count)
    shown = both if len(seeds) >= crossed.MIN_SEEDS else over_examples
    p = crossed.p_value(float(np.mean(values)), both)
    return PairTest(difference_of(values, bounds, shown), p, CROSSED)


def _pairs(
    rows: Sequence[TableRow],
    metric: str,
    bounds: tuple[float, float],
    examples: ExampleScores,
) -> dict[_Pair, PairTest]:
    """The tests of all pairs of rows, in both orders; see `Comparison.pairs`."""
    found = {
        (one.spec.name, two.spec.name): pair
        for one, two in itertools.combinations(rows, 2)
        if (pair := pair_test(one, two, metric, bounds, examples))
    }
    # The adjustment counts each pair once.
    adjusted = _holm({k: x.p for k, x in found.items() if COVERED.get(x.test, SEEDS) != SEEDS})
    both: dict[_Pair, PairTest] = {}
    for (one_name, two_name), pair in found.items():
        p_holm = adjusted.get((one_name, two_name), math.nan)
        both[one_name, two_name] = dataclasses.replace(pair, p_holm=p_holm)
        both[two_name, one_name] = both[one_name, two_name].reversed
    return both


def _spread_of(row: TableRow, metric: str, examples: ExampleScores) -> crossed.Spread | None:
    """The error of the mean score of a row; None without predictions."""
    values = {s: float(x[metric]) for s, x in row.test.items() if defined(x.get(metric))}
    seeds = sorted(values)
    if len(seeds) < 2 or not examples.known(row, seeds):
        return None
    covariance, count = examples.covariance(row, seeds), examples.count(row, seeds)
    if len(seeds) < crossed.MIN_SEEDS:
        return crossed.over_examples(covariance, count)
    return crossed.over_both([values[seed] for seed in seeds], covariance, count)


def _covers(spread: crossed.Spread) -> str:
    if spread.seeds and spread.examples:
        return BOTH
    return SEEDS if spread.seeds else EXAMPLES if spread.examples else ""


def _dominating(
    rows: Sequence[TableRow], sign: int, pairs: Mapping[_Pair, PairTest]
) -> dict[str, tuple[str, ...]]:
    """By row name, the labels of the rows that dominate the row; see `ComparedRow.dominated_by`."""

    def dominates(one: TableRow, two: TableRow) -> bool:
        pair = pairs.get((one.spec.name, two.spec.name))
        if not pair or not pair.p_holm < LEVEL or not sign * pair.difference.value > 0:
            return False
        if one.cost is None or two.cost is None:
            return False
        return all(getattr(one.cost, cost) <= getattr(two.cost, cost) for cost in COSTS)

    return {
        row.spec.name: tuple(x.spec.label for x in rows if x is not row and dominates(x, row))
        for row in rows
    }


def _differences(ours: TableRow, theirs: TableRow, metric: str) -> dict[int, float]:
    """Our score minus their score for every seed that both rows have."""
    return {
        seed: float(scores[metric] - theirs.test[seed][metric])
        for seed, scores in sorted(ours.test.items())
        if seed in theirs.test
        and defined(scores.get(metric))
        and defined(theirs.test[seed].get(metric))
    }


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

"""The result of a table in one or two sentences, with its uncertainty.

A row is said to be better than another only if their difference is significant after Holm's
adjustment over all pairs of the table. Otherwise the two are not told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.report.base import BOTH, ComparedRow, Comparison
from finetune_jax.ablation.report.statistics import COVERED, LEVEL
from finetune_jax.metrics import names

_SHOWN = 3
"""Largest number of rows that a sentence lists by name."""

_COSTS = {"step_flops": "the FLOPs of a step", "trainable": "the trained scalars"}


def sentences(comparison: Comparison, outcome: Outcome) -> list[str]:
    """One or two sentences about a table: the best row, and what more cost does not buy.

    1. Which row has the best score, which rows it is better than, and which rows are not told apart
       from it.
    2. Of the rows that are not told apart from it: a row that is not shown to be better than the
       cheapest one and costs more, with the factor. It is left out where the factor is below 1.1.
    """
    scored = [x for x in comparison.rows if not math.isnan(x.score.value)]
    if not scored:
        return ["No row has a score on the test split."]
    sign = 1 if outcome.better == "max" else -1
    best = max(scored, key=lambda x: sign * x.score.value)
    others = [x for x in scored if x is not best]
    where = _where(best, outcome)
    if not others:
        return [f"{_named(best)} has {_score(best, outcome)} {where}; no other row has a score."]
    if all(math.isnan(_p(comparison, best, x)) for x in others):
        return [
            f"{_named(best)} has the best {names.named(outcome.metric).name}, "
            f"{_score(best, outcome)} {where}; no test over examples says whether the rows differ."
        ]
    worse = [x for x in others if _p(comparison, best, x) < LEVEL]
    close = [x for x in others if x not in worse]
    found = [_first(best, worse, close, outcome, where)]
    uncovered = {
        COVERED[pair.test]
        for (one, _), pair in comparison.pairs.items()
        if one == best.row.spec.name and pair.test
    } - {BOTH}
    if uncovered:
        found[0] = f"{found[0][:-1]} ({_uncovered(outcome)})."
    return found + _second(comparison, [best, *close])


def titled(comparison: Comparison, outcome: Outcome) -> str:
    """The sentences of a table as one text, after the name of the table where there are several."""
    text = " ".join(sentences(comparison, outcome))
    return f"{comparison.name}: {text}" if comparison.name else text


def _first(
    best: ComparedRow,
    worse: Sequence[ComparedRow],
    close: Sequence[ComparedRow],
    outcome: Outcome,
    where: str,
) -> str:
    metric = names.named(outcome.metric).name
    if not worse and len(close) == 1:
        other = close[0]
        return (
            f"{_named(best)} and {_named(other)} are not told apart {where}: {metric} "
            f"{_score(best, outcome)} and {_score(other, outcome)}."
        )
    if not worse:
        return (
            f"No row is told apart {where} from {_named(best)}, which has the best {metric}, "
            f"{_score(best, outcome)}."
        )
    beaten = "every other row" if not close and len(worse) > 1 else _listed(worse)
    text = (
        f"{_named(best)} has the best {metric} {where}, {_score(best, outcome)}, and is better "
        f"than {beaten}"
    )
    if not close:
        return f"{text}."
    verb = "is" if len(close) == 1 else "are"
    return f"{text}; {_listed(close)} {verb} not told apart from it."


def _second(comparison: Comparison, alike: Sequence[ComparedRow]) -> list[str]:
    """What more cost does not buy among rows of which the first is the best."""
    priced = [x for x in alike if x.row.cost]
    for cost, words in _COSTS.items():
        spent = {x.row.spec.name: float(getattr(x.row.cost, cost)) for x in priced}
        if len(priced) < 2 or min(spent.values()) <= 0:
            continue
        cheapest = min(priced, key=lambda x: spent[x.row.spec.name])
        least = spent[cheapest.row.spec.name]
        for x in sorted(priced, key=lambda x: -spent[x.row.spec.name]):
            factor = spent[x.row.spec.name] / least
            p_value = _p(comparison, x, cheapest)
            if factor >= 1.1 and p_value >= LEVEL:
                return [
                    f"{_named(x)} is not shown to be better than {_named(cheapest)} at "
                    f"{_times(factor)} times {words}."
                ]
    return []


def _p(comparison: Comparison, one: ComparedRow, two: ComparedRow) -> float:
    pair = comparison.pairs.get((one.row.spec.name, two.row.spec.name))
    return pair.p_holm if pair else math.nan


def _named(row: ComparedRow) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in row.row.spec.label).split())


def _listed(rows: Sequence[ComparedRow]) -> str:
    labels = [_named(x) for x in rows[:_SHOWN]]
    if len(rows) > _SHOWN:
        labels = [*labels[: _SHOWN - 1], f"{len(rows) - _SHOWN + 1} other rows"]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _score(row: ComparedRow, outcome: Outcome) -> str:
    score = row.score
    return names.with_interval(outcome.metric, score.value, score.low, score.high)


def _where(best: ComparedRow, outcome: Outcome) -> str:
    """The examples and seeds behind a score."""
    counts = {scores["n_scored"] for scores in best.row.test.values()}
    seeds = best.score.seeds
    return f"on {max(counts):,} test examples with {seeds} seed{'s' * (seeds != 1)}"


def _uncovered(outcome: Outcome) -> str:
    """Why tests over examples alone say nothing about seeds."""
    if len(outcome.seeds) == 1:
        return "one seed: training again is not covered"
    return "where all seeds agree, the test is over examples alone"


def _times(factor: float) -> str:
    return f"{factor:.1f}" if factor < 10 else f"{float(f'{factor:.2g}'):,.0f}"

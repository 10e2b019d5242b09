"""Lays out a comparison as a table of rounded numbers, with notes that explain its marks."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report.base import (
    BOTH,
    COSTS,
    EXAMPLES,
    SEEDS,
    ComparedRow,
    Comparison,
    Estimate,
    ExtraColumn,
)
from finetune_jax.ablation.report.sentences import sentences
from finetune_jax.ablation.report.statistics import BOOTSTRAP, COVERED, CROSSED, MCNEMAR
from finetune_jax.metrics import names
from finetune_jax.metrics.crossed import MIN_SEEDS
from finetune_jax.tables import count, size

EDGE = "†"
"""Mark of a chosen value that is the smallest or the largest value tried."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as plain text, without escapes for any format.

    Attributes:
      title: title in one line.
      result: the result in one or two sentences.
      caption: metric, examples, seeds and budget.
      header: names of the columns.
      numeric: indices of the columns with numbers.
      rows: cells of each row.
      notes: explanations of marks, failed rows, and what was not run.
    """

    title: str
    result: str
    caption: str
    header: tuple[str, ...]
    numeric: frozenset[int]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def lay_out(comparison: Comparison, extra: Sequence[ExtraColumn], outcome: Outcome) -> Table:
    """The table of a comparison, with rounded numbers.

    Args:
      comparison: comparison of the rows of the table.
      extra: extra columns of the table.
      outcome: outcome that the table belongs to.
    """
    rows = comparison.rows
    columns: dict[str, list[str]] = {
        "row": [x.row.spec.label for x in rows],
        "chosen": [chosen(x.row) for x in rows],
        names.heading(outcome.metric): [score_text(x, outcome) for x in rows],
        difference_heading(outcome): [
            difference_text(x, comparison.reference, outcome) for x in rows
        ],
        "p": [p_value_text(x.p_holm) for x in rows],
        "trained": [_trained(x.row) for x in rows],
    }
    for name, attribute, show in (
        ("FLOPs/step", "step_flops", count),
        ("peak memory", "peak_bytes", size),
        ("optimizer", "optimizer_bytes", size),
        ("checkpoint", "checkpoint_bytes", size),
        ("seconds", "seconds", lambda s: f"{s:.0f}" if s >= 10 else f"{s:.1f}"),
    ):
        columns[name] = [show(getattr(x.row.cost, attribute)) if x.row.cost else "–" for x in rows]
    for column in extra:
        columns[column.heading] = [
            "not run"
            if column.not_run
            else interval(column.estimates[x.row.spec.name], column.score)
            for x in rows
        ]
    columns["marks"] = [marks(x) for x in rows]
    return Table(
        title=comparison.name or names.named(outcome.metric).name,
        result=" ".join(sentences(comparison, outcome)),
        caption=caption(comparison, outcome),
        header=tuple(columns),
        numeric=frozenset(range(2, len(columns) - 1)),
        rows=tuple(zip(*columns.values(), strict=True)),
        notes=tuple(notes(comparison, extra, outcome)),
    )


def caption(comparison: Comparison, outcome: Outcome) -> str:
    """Metric, examples, seeds and budget of a table, in sentences."""
    counts = {s["n_scored"] for x in comparison.rows for s in x.row.test.values()}
    examples = "/".join(f"{n:,}" for n in sorted(counts)) or "no"
    seeds = ", ".join(map(str, outcome.seeds))
    several = f"mean over seeds {seeds}" if len(outcome.seeds) > 1 else f"seed {seeds}"
    tuned = f"{outcome.tuning_seeds} seed{'s' * (outcome.tuning_seeds > 1)}"
    return (
        f"Test {names.named(outcome.metric).name} "
        f"({'more' if outcome.better == 'max' else 'less'} is better) on {examples} examples, "
        f"{several}{_interval_words(comparison)}. Hyper-parameters are chosen on validation; "
        f"tuning budget of every row: {comparison.budget:g} "
        f"run{'s' * (comparison.budget != 1)} of full length, each point over "
        f"{tuned}. Differences are to {comparison.reference}."
    )


def _interval_words(comparison: Comparison) -> str:
    covered = {x.score.covers for x in comparison.rows if x.score.covers}
    parts = [f"over {what}" for what in (BOTH, SEEDS, EXAMPLES) if what in covered]
    return f" [95 % interval {', or '.join(parts)}]" if parts else ""


def notes(comparison: Comparison, extra: Sequence[ExtraColumn], outcome: Outcome) -> list[str]:
    """Notes below a table: statistics, marks, failed rows, and what was not run."""
    metric = names.named(outcome.metric).name
    found = [
        *_statistics_notes(comparison, outcome),
        f"Marks: P, on the Pareto front of {metric} and trained scalars: no row has better "
        f"{metric} with as few trained scalars; F, on the Pareto front of {metric} and FLOPs per "
        "step; D, dominated: another row costs no more by both and is better, p < 0.05 after "
        "Holm's adjustment over all pairs.",
    ]
    found += [
        f"{x.row.spec.label}: dominated by {', '.join(x.dominated_by)}."
        for x in comparison.rows
        if x.dominated_by
    ]
    if any(x.row.edges for x in comparison.rows):
        found.append(
            f"{EDGE}: the smallest or the largest value tried; values beyond it may be better."
        )
    for x in comparison.rows:
        if x.row.point is None:
            found.append(f"{x.row.spec.label}: failed: every point that was tried failed.")
        elif not x.row.test and not x.row.errors:
            found.append(f"{x.row.spec.label}: not scored (needs data.test).")
        for seed, error in sorted(x.row.errors.items()):
            found.append(f"{x.row.spec.label}: failed with seed {seed}: {one_line(error)}")
    found += [
        f"{column.heading.removesuffix(', %')}: not run, {one_line(column.not_run)}"
        for column in extra
        if column.not_run
    ]
    found.append(
        "FLOPs and bytes are those that XLA reports for the compiled step; a frozen prefix that is "
        "cached is not part of the step. Seconds are wall-clock time, and other runs may have run "
        "at the same time."
    )
    return found


def _statistics_notes(comparison: Comparison, outcome: Outcome) -> list[str]:
    found = []
    if 1 < len(outcome.seeds) < MIN_SEEDS:
        found.append(
            f"With {len(outcome.seeds)} seeds, intervals do not cover training again: "
            f"{MIN_SEEDS} seeds are the fewest that say something about it."
        )
    if comparison.tests:
        found.append(
            f"p: {'; '.join(_test_words(test) for test in comparison.tests)}. After Holm's "
            "adjustment over the rows of the table."
        )
    return found


def _test_words(test: str) -> str:
    """A test, and what it does not cover."""
    if test == CROSSED:
        return f"{test} (Obuchowski and Rockette 1995)"
    without = {EXAMPLES: "training again with other seeds", SEEDS: "testing on other examples"}
    missing = without[COVERED[test]]
    if test in (MCNEMAR, BOOTSTRAP):
        return f"{test}, where there is one seed or all seeds agree; it does not cover {missing}"
    return f"{test}; it does not cover {missing}"


def chosen(row: TableRow) -> str:
    """The chosen values, with the mark `EDGE` where a value is the smallest or largest tried."""
    if row.point is None:
        return "–"
    parts = [
        f"{name}={row.point[key]}{EDGE if key in row.edges else ''}"
        for key, name in short_keys(row.point).items()
    ]
    return ", ".join(parts) or "–"


def short_keys(point: Overrides) -> dict[str, str]:
    """By key, the last part of the key if it is unique in the point, else the full key."""
    last = {key: key.rpartition(".")[2] for key in point}
    return {k: v if list(last.values()).count(v) == 1 else k for k, v in last.items()}


def score_text(compared: ComparedRow, outcome: Outcome) -> str:
    """The score with its interval, or why there is no score."""
    row, score = compared.row, compared.score
    if row.point is None or (row.errors and not row.test):
        return "failed"
    if not row.test:
        return "not scored"
    missing = score.seeds < len(outcome.seeds)
    return (
        interval(score, outcome.metric)
        + f" ({score.seeds} of {len(outcome.seeds)} seeds)" * missing
    )


def difference_heading(outcome: Outcome) -> str:
    """Header of the column of differences."""
    return f"difference{', points' * names.named(outcome.metric).percent}"


def difference_text(compared: ComparedRow, reference: str, outcome: Outcome) -> str:
    """The difference to the reference row with its interval.

    Args:
      compared: the row.
      reference: label of the reference row.
      outcome: outcome that the row belongs to.
    """
    if compared.row.spec.label == reference:
        return "reference"
    if not compared.difference:
        return "–"
    return interval(compared.difference, outcome.metric, sign=True)


def interval(estimate: Estimate, score: str, *, sign: bool = False) -> str:
    """An estimate such as ``91.2 [90.0, 92.5]``; only the value if it has no interval.

    Args:
      estimate: the estimate.
      score: raw name of the score, which decides how numbers are written; without their unit.
      sign: whether positive numbers have a sign.
    """
    ends = [] if math.isnan(estimate.low) else [estimate.low, estimate.high]
    texts = [names.written(score, x, sign=sign, unit=False) for x in (estimate.value, *ends)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if ends else texts[0]


def p_value_text(p_value: float) -> str:
    """A p-value with three digits; ``<0.001`` for smaller values."""
    if math.isnan(p_value):
        return "–"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def marks(compared: ComparedRow) -> str:
    """The letters ``P``, ``F`` and ``D`` that apply to a row; see `notes`."""
    letters = [letter for letter, cost in zip("PF", COSTS, strict=True) if cost in compared.front]
    return " ".join(letters + ["D"] * bool(compared.dominated_by))


def without_common(names: Sequence[str]) -> list[str]:
    """Names without the leading folders that all names share; a single name becomes empty."""
    if len(names) < 2:
        return [""] * len(names)
    common = os.path.commonprefix(names)
    length = 1 + max(common.rfind("/"), common.rfind(":"))
    return [name[length:] for name in names]


def one_line(text: str) -> str:
    """Text in one line: runs of white space and control characters become single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _trained(row: TableRow) -> str:
    if row.cost is None:
        return "–"
    return f"{count(row.cost.trainable)} ({100 * row.cost.trainable / row.cost.total:.3g} %)"

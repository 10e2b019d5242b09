"""Lays out a comparison as a table of rounded numbers, with notes that explain its marks."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report.base import (
    COSTS,
    ComparedRow,
    Comparison,
    Estimate,
    ExtraColumn,
)
from finetune_jax.ablation.report.example_scores import MCNEMAR
from finetune_jax.reporting.html import number
from finetune_jax.tables import count, size

EDGE = "†"
"""Mark of a chosen value that is the smallest or the largest value tried."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as plain text, without escapes for any format.

    Attributes:
      title: title in one line.
      caption: metric, examples, seeds and budget.
      header: names of the columns.
      numeric: indices of the columns with numbers.
      rows: cells of each row.
      notes: explanations of marks, failed rows, and what was not run.
    """

    title: str
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
        outcome.metric: [score_text(x, outcome) for x in rows],
        "difference": [difference_text(x, comparison.reference) for x in rows],
        "p, examples": [p_value_text(x.p_examples_holm) for x in rows],
        "p, seeds": [p_value_text(x.p_seeds_holm) for x in rows],
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
        columns[column.name] = [
            "not run" if column.not_run else interval(column.estimates[x.row.spec.name])
            for x in rows
        ]
    columns["marks"] = [marks(x) for x in rows]
    return Table(
        title=comparison.name or outcome.metric,
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
    several = f"mean over seeds {seeds} [95 % t interval]"
    single = f"seed {seeds} [95 % interval over examples]"
    tuned = f"{outcome.tuning_seeds} seed{'s' * (outcome.tuning_seeds > 1)}"
    return (
        f"Test {outcome.metric} ({'more' if outcome.better == 'max' else 'less'} is better) on "
        f"{examples} examples, {several if len(outcome.seeds) > 1 else single}. Hyper-parameters "
        f"are chosen on validation; tuning budget of every row: {comparison.budget:g} runs of full "
        f"length, each point over {tuned}. Differences are to {comparison.reference}."
    )


def notes(comparison: Comparison, extra: Sequence[ExtraColumn], outcome: Outcome) -> list[str]:
    """Notes below a table: statistics, marks, failed rows, and what was not run."""
    found = [
        *_statistics_notes(comparison, outcome),
        f"Marks: P, on the Pareto front of {outcome.metric} and trained scalars: no row has better "
        f"{outcome.metric} with as few trained scalars; F, on the Pareto front of {outcome.metric} "
        "and FLOPs per step; D, dominated: another row costs no more by both and is better, "
        "p < 0.05 over examples after Holm's adjustment over all pairs.",
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
        f"{column.name}: not run, {one_line(column.not_run)}" for column in extra if column.not_run
    ]
    found.append(
        "FLOPs and bytes are those that XLA reports for the compiled step; a frozen prefix that is "
        "cached is not part of the step. Seconds are wall-clock time, and other runs may have run "
        "at the same time."
    )
    return found


def _statistics_notes(comparison: Comparison, outcome: Outcome) -> list[str]:
    found = []
    if len(outcome.seeds) > 1:
        found.append(
            "Intervals over seeds describe training again and testing on the same examples; if all "
            "seeds have the same score, the interval has no width."
        )
    if comparison.test:
        pooled = comparison.test == MCNEMAR and len(outcome.seeds) > 1
        found.append(
            f"p, examples: {comparison.test} on the test predictions"
            + (" of all common seeds together, which are not independent" if pooled else "")
            + "; p, seeds: paired t-test. Both after Holm's adjustment over the rows of the table."
        )
    return found


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
    return interval(score) + f" ({score.seeds} of {len(outcome.seeds)} seeds)" * missing


def difference_text(compared: ComparedRow, reference: str) -> str:
    """The difference to the reference row with its interval.

    Args:
      compared: the row.
      reference: label of the reference row.
    """
    if compared.row.spec.label == reference:
        return "reference"
    return interval(compared.difference, "+") if compared.difference else "–"


def interval(estimate: Estimate, sign: str = "") -> str:
    """An estimate such as ``0.9123 [0.9001, 0.9245]``; only the value if it has no interval.

    Args:
      estimate: the estimate.
      sign: ``+`` to show the sign of positive numbers.
    """
    if math.isnan(estimate.value):
        return "–"
    numbers = [estimate.value]
    if not math.isnan(estimate.low):
        numbers += [estimate.low, estimate.high]
    # All three numbers have the same form, so that they are easy to compare.
    fixed = 1e-3 <= max(map(abs, numbers)) < 1e5
    texts = [
        ("+" if sign and x > 0 else "") + (f"{x:.4f}" if fixed else number(x)) for x in numbers
    ]
    return texts[0] if len(texts) == 1 else f"{texts[0]} [{texts[1]}, {texts[2]}]"


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

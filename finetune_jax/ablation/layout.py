"""A comparison laid out as a table of rounded numbers, with what its marks mean."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence

from finetune_jax.ablation.answers import MCNEMAR
from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.extras import Extra
from finetune_jax.ablation.outcome import Outcome, Row
from finetune_jax.ablation.statistics import COSTS, Compared, Comparison, Estimate
from finetune_jax.reporting.html import number
from finetune_jax.tables import count, size

EDGE = "†"
"""Beside a chosen value that is at an end of those tried."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Plain text, not escaped for anything.

    Attributes:
      title: one line.
      caption: metric, examples, seeds, budget.
      header: names of the columns.
      numeric: which columns are numbers, by place.
      rows: cells.
      notes: what marks mean, what failed, what was not run.
    """

    title: str
    caption: str
    header: tuple[str, ...]
    numeric: frozenset[int]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def lay_out(comparison: Comparison, further: Sequence[Extra], outcome: Outcome) -> Table:
    """The table of a comparison, with rounded numbers.

    Args:
      comparison: of a table.
      further: its `extras`.
      outcome: which it is of.
    """
    columns: dict[str, list[str]] = {
        "row": [x.row.line.label for x in comparison.rows],
        "chosen": [chosen(x.row) for x in comparison.rows],
        outcome.metric: [scored(x, outcome) for x in comparison.rows],
        "difference": [difference(x, comparison.reference) for x in comparison.rows],
        "p, examples": [p_value(x, "p_examples_holm") for x in comparison.rows],
        "p, seeds": [p_value(x, "p_seeds_holm") for x in comparison.rows],
        "trained": [_trained(x.row) for x in comparison.rows],
    }
    for name, attribute, show in (
        ("FLOPs/step", "step_flops", count),
        ("peak memory", "peak_bytes", size),
        ("optimizer", "optimizer_bytes", size),
        ("checkpoint", "checkpoint_bytes", size),
        ("seconds", "seconds", lambda s: f"{s:.0f}" if s >= 10 else f"{s:.1f}"),
    ):
        columns[name] = [
            show(getattr(x.row.cost, attribute)) if x.row.cost else "–" for x in comparison.rows
        ]
    for extra in further:
        columns[extra.name] = [
            "not run" if extra.not_run else interval(extra.estimates[x.row.line.name])
            for x in comparison.rows
        ]
    columns["marks"] = [marks(x) for x in comparison.rows]
    return Table(
        title=comparison.name or outcome.metric,
        caption=caption(comparison, outcome),
        header=tuple(columns),
        numeric=frozenset(range(2, len(columns) - 1)),
        rows=tuple(zip(*columns.values(), strict=True)),
        notes=tuple(notes(comparison, further, outcome)),
    )


def caption(comparison: Comparison, outcome: Outcome) -> str:
    """Metric, examples, seeds and budget of a table, in words."""
    counts = {s["n_scored"] for x in comparison.rows for s in x.row.test.values()}
    examples = "/".join(f"{n:,}" for n in sorted(counts)) or "no"
    seeds = ", ".join(map(str, outcome.seeds))
    several = f"mean over seeds {seeds} [95 % t interval]"
    one = f"seed {seeds} [95 % interval over examples]"
    tuned = f"{outcome.tuned_over} seed{'s' * (outcome.tuned_over > 1)}"
    return (
        f"Test {outcome.metric} ({'more' if outcome.better == 'max' else 'less'} is better) on "
        f"{examples} examples, {several if len(outcome.seeds) > 1 else one}. Hyper-parameters are "
        f"chosen on validation; budget of every row: {comparison.budget:g} runs of whole length, "
        f"each point over {tuned}. Differences are to {comparison.reference}."
    )


def notes(comparison: Comparison, further: Sequence[Extra], outcome: Outcome) -> list[str]:
    """What the marks mean, how sure the numbers are, what failed and what was not run."""
    found = []
    if len(outcome.seeds) > 1:
        found.append(
            "Intervals over seeds are of training again and testing on the same examples; without "
            "any spread they have no width."
        )
    if comparison.test:
        pooled = comparison.test == MCNEMAR and len(outcome.seeds) > 1
        found.append(
            f"p, examples: {comparison.test} on the test predictions"
            + (" of all common seeds together, whose answers are not independent" if pooled else "")
            + "; p, seeds: paired t-test. Both after Holm over the rows of the table."
        )
    found.append(
        f"Marks: P, no row has better {outcome.metric} with as few trained scalars (Pareto front); "
        "F, likewise with as few FLOPs per step; D, dominated: another row takes no more of both "
        "and is better, p < 0.05 over examples after Holm over all pairs."
    )
    found += [
        f"{x.row.line.label}: dominated by {', '.join(x.dominated_by)}."
        for x in comparison.rows
        if x.dominated_by
    ]
    if any(x.row.edges for x in comparison.rows):
        found.append(f"{EDGE}: an end of the values tried; a better one may lie beyond.")
    for x in comparison.rows:
        if x.row.point is None:
            found.append(f"{x.row.line.label}: failed: every point that was tried failed.")
        elif not x.row.test and not x.row.errors:
            found.append(f"{x.row.line.label}: not scored (needs data.test).")
        for seed, error in sorted(x.row.errors.items()):
            found.append(f"{x.row.line.label}: failed with seed {seed}: {one_line(error)}")
    found += [f"{extra.name}: not run, {one_line(extra.not_run)}" for extra in further
              if extra.not_run]  # fmt: skip
    found.append(
        "FLOPs and bytes are XLA's figures of the compiled step, behind a cached prefix where "
        "there is one; seconds are wall time beside whatever else ran."
    )
    return found


def chosen(row: Row) -> str:
    """The tuned values, with a mark where they are at an end of those tried."""
    if row.point is None:
        return "–"
    shown = [
        f"{name}={row.point[key]}{EDGE if key in row.edges else ''}"
        for key, name in short_keys(row.point).items()
    ]
    return ", ".join(shown) or "–"


def short_keys(point: Overrides) -> dict[str, str]:
    """The last part of each key where that tells it from the others, else the whole key."""
    last = {key: key.rpartition(".")[2] for key in point}
    return {k: v if list(last.values()).count(v) == 1 else k for k, v in last.items()}


def scored(compared: Compared, outcome: Outcome) -> str:
    """The score with its interval, or why there is none."""
    row, score = compared.row, compared.score
    if row.point is None or (row.errors and not row.test):
        return "failed"
    if not row.test:
        return "not scored"
    some = f" ({score.seeds} of {len(outcome.seeds)} seeds)"
    return interval(score) + (some if score.seeds < len(outcome.seeds) else "")


def difference(compared: Compared, reference: str) -> str:
    """The difference to the reference with its interval."""
    found = compared.difference
    if compared.row.line.label == reference:
        return "reference"
    return interval(Estimate(found.value, found.low, found.high, 0), "+") if found else "–"


def interval(score: Estimate, sign: str = "") -> str:
    """``0.9123 [0.9001, 0.9245]``; the value alone where there is no interval."""
    if math.isnan(score.value):
        return "–"
    numbers = (score.value,) if math.isnan(score.low) else (score.value, score.low, score.high)
    # One form for all three, so that they can be compared at a glance.
    usual = 1e-3 <= max(map(abs, numbers)) < 1e5
    shown = [
        ("+" if sign and x > 0 else "") + (f"{x:.4f}" if usual else number(x)) for x in numbers
    ]
    return shown[0] if len(shown) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def p_value(compared: Compared, name: str) -> str:
    """A p-value of a difference; below 0.001 only that."""
    value = getattr(compared.difference, name, math.nan)
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def marks(compared: Compared) -> str:
    """``P``, ``F`` and ``D``; see `notes`."""
    letters = [letter for letter, cost in zip("PF", COSTS, strict=True) if cost in compared.front]
    return " ".join(letters + ["D"] * bool(compared.dominated_by))


def without_common(names: Sequence[str]) -> list[str]:
    """Names without the folders that all begin with; of one name nothing is left."""
    if len(names) < 2:
        return [""] * len(names)
    common = re.match(r"(?:.*[/:])?", os.path.commonprefix(names), re.DOTALL)[0]
    return [name[len(common) :] for name in names]


def one_line(text: str) -> str:
    """Text without line breaks and other control characters; spaces between words are single."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _trained(row: Row) -> str:
    if row.cost is None:
        return "–"
    return f"{count(row.cost.trainable)} ({100 * row.cost.trainable / row.cost.total:.3g} %)"

"""Figures of a comparison: score against cost, and shifted test sets against the test split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.report.base import COSTS, Comparison, Estimate, ExtraColumn
from finetune_jax.ablation.report.drawing import (
    Drawing,
    height_for,
    label_rows,
    new_drawing,
    width,
)
from finetune_jax.ablation.report.layout import one_line
from finetune_jax.ablation.report.sensitivity import sensitivity
from finetune_jax.metrics import names
from finetune_jax.reporting import style
from finetune_jax.reporting.fonts import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"trainable": "trained scalars", "step_flops": "FLOPs of a training step"}


def figures(
    comparison: Comparison, extra: Sequence[ExtraColumn], outcome: Outcome
) -> list[Drawing]:
    """The figures of a table; figures without data are left out.

    Args:
      comparison: comparison of the rows of the table.
      extra: extra columns of the table.
      outcome: outcome that the table belongs to.
    """
    drawings = [score_against_cost(comparison, cost, outcome) for cost in COSTS]
    drawings += sensitivity(comparison, outcome)
    drawings += [
        shifted_against_test(comparison, column, outcome, f"shift_{number}")
        for number, column in enumerate(extra)
        if column.shifted
    ]
    return [drawing for drawing in drawings if drawing is not None]


def score_against_cost(comparison: Comparison, cost: str, outcome: Outcome) -> Drawing | None:
    """The score with its interval against a cost, and the Pareto front; None without scores.

    Args:
      comparison: comparison of the rows of a table.
      cost: attribute of `RunCost`.
      outcome: outcome that the table belongs to.
    """
    rows = [x for x in comparison.rows if x.row.cost and not math.isnan(x.score.value)]
    if not rows:
        return None
    labels = [x.row.spec.label for x in rows]
    costs = [float(getattr(x.row.cost, cost)) for x in rows]
    on_front = [cost in x.front for x in rows]
    title = f"Test {names.named(outcome.metric).name} against {_NAMES[cost]}"
    size = width(), height_for(len(rows))
    with new_drawing(f"cost_{cost}", title, *size) as (grid, drawing):
        axes = grid[0, 0]
        front = {(c, x.score.value) for c, x, on in zip(costs, rows, on_front, strict=True) if on}
        axes.step(*zip(*sorted(front), strict=True), where="post", color=style.MAIN, lw=1,
                  alpha=0.6)  # fmt: skip
        for value, compared, on in zip(costs, rows, on_front, strict=True):
            color = style.MAIN if on else style.SECOND
            _draw_point(axes, Estimate(value, math.nan, math.nan, 1), compared.score, color)
        axes.plot([], [], "o-", ms=5, lw=1, color=style.MAIN, label="Pareto front")
        if not all(on_front):
            axes.plot([], [], "o", ms=5, color=style.SECOND, label="not on it")
        if min(costs) > 0:
            axes.set_xscale("log")
        elif max(costs) > 0:
            # A head solved in closed form has no training step and costs 0, which a logarithmic
            # axis cannot show.
            axes.set_xscale("symlog", linthresh=min(c for c in costs if c), linscale=0.3)
        _round_ticks(axes, costs)
        axes.margins(x=0.08)
        axes.set_xlabel(_NAMES[cost])
        axes.set_ylabel(_score_axis_label(outcome))
        style.in_percent(axes.yaxis, outcome.metric)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        points = [(c, x.score.value) for c, x in zip(costs, rows, strict=True)]
        label_rows(axes, [(*p, label) for p, label in zip(points, labels, strict=True)])
        drawing.rows = tuple(labels)
    return drawing


def shifted_against_test(
    comparison: Comparison, column: ExtraColumn, outcome: Outcome, name: str
) -> Drawing | None:
    """A score on another distribution against the test score; None where no row has both.

    Args:
      comparison: comparison of the rows of a table.
      column: scores on the other distribution.
      outcome: outcome that the table belongs to.
      name: name of the drawing.
    """
    rows = [
        (x.row.spec.label, x.score, column.estimates[x.row.spec.name])
        for x in comparison.rows
        if not math.isnan(x.score.value + column.estimates[x.row.spec.name].value)
    ]
    if not rows:
        return None
    title = f"{column.heading} against test {names.named(outcome.metric).name}"
    title = title[:1].upper() + title[1:]
    with new_drawing(name, title, width(), height_for(len(rows))) as (grid, drawing):
        axes = grid[0, 0]
        for _, test, shifted in rows:
            _draw_point(axes, test, shifted, style.MAIN)
        axes.margins(0.1)
        limits = axes.get_xlim(), axes.get_ylim()
        axes.axline((0, 0), slope=1, ls="--", color=style.FAINT, lw=1, zorder=0, label="equal")
        axes.set(xlim=limits[0], ylim=limits[1])
        axes.set_xlabel(_score_axis_label(outcome))
        axes.set_ylabel(f"{drawn(one_line(column.heading))} (95 % interval)", parse_math=False)
        style.in_percent(axes.xaxis, outcome.metric)
        style.in_percent(axes.yaxis, column.score)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
        label_rows(axes, [(test.value, shifted.value, label) for label, test, shifted in rows])
        drawing.rows = tuple(label for label, *_ in rows)
    return drawing


def _score_axis_label(outcome: Outcome) -> str:
    less = "" if outcome.better == "max" else ", less is better"
    return f"test {names.heading(outcome.metric)} (95 % interval{less})"


def _round_ticks(axes: Axes, costs: Sequence[float]) -> None:
    """At most five ticks at powers of ten, written with a prefix such as in ``10 M``."""
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    positive = [c for c in costs if c > 0]
    if not positive:
        return
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    step = max(1, math.ceil((high - low) / (3 if style.is_narrow() else 6)))
    ticks = [10.0**power for power in range(low, high + 1, step)]
    axes.xaxis.set_major_locator(FixedLocator([0.0] * (min(costs) <= 0) + ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter())
    # A tick on each side tells the scale, even where all rows cost nearly the same.
    left = 0.0 if min(costs) <= 0 else min(10.0**low, min(positive) / 1.2)
    axes.set_xlim(left - (0.3 * ticks[0] if left == 0 else 0), 10.0**high * 1.2)


def _draw_point(axes: Axes, x: Estimate, y: Estimate, color: str) -> None:
    """Draws a point with the intervals that its coordinates have."""
    bars: dict[str, Any] = {}
    for name, of_axis in (("xerr", x), ("yerr", y)):
        if not math.isnan(of_axis.low):
            bars[name] = [[of_axis.value - of_axis.low], [of_axis.high - of_axis.value]]
    axes.errorbar(x.value, y.value, **bars, fmt="o", ms=5, color=color, capsize=3, elinewidth=1)

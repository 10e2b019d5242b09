"""Figures of a comparison: score against cost, and off the distribution against on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune_jax.ablation.drawing import Drawing, drawn, height_for, label_beside, width_for
from finetune_jax.ablation.extras import Extra
from finetune_jax.ablation.layout import one_line
from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.sensitivity import sensitivity
from finetune_jax.ablation.statistics import COSTS, Comparison, Estimate
from finetune_jax.reporting import charts

_NAMES = {"trainable": "trained scalars", "step_flops": "FLOPs of a training step"}


def figures(comparison: Comparison, further: Sequence[Extra], outcome: Outcome) -> list[Drawing]:
    """Those that a table has something to show for.

    Args:
      comparison: of a table.
      further: its `extras`.
      outcome: which it is of.
    """
    found = [against_cost(comparison, cost, outcome) for cost in COSTS]
    found += sensitivity(comparison, outcome)
    found += [
        off_against_on(comparison, extra, outcome, f"shift_{number}")
        for number, extra in enumerate(further)
        if extra.shifted
    ]
    return [drawing for drawing in found if drawing is not None]


def against_cost(comparison: Comparison, cost: str, outcome: Outcome) -> Drawing | None:
    """The score with its interval against a cost, and the Pareto front; None without scores.

    Args:
      comparison: of a table.
      cost: attribute of `Cost`.
      outcome: which it is of.
    """
    rows = [x for x in comparison.rows if x.row.cost and not math.isnan(x.score.value)]
    if not rows:
        return None
    labels = [x.row.line.label for x in rows]
    places = [float(getattr(x.row.cost, cost)) for x in rows]
    on_front = [cost in x.front for x in rows]
    title = f"Test {outcome.metric} against {_NAMES[cost]}"
    with drawn(f"cost_{cost}", title, width_for(labels), height_for(len(rows))) as (grid, drawing):
        axes = grid[0, 0]
        front = {(p, x.score.value) for p, x, on in zip(places, rows, on_front, strict=True) if on}
        axes.step(*zip(*sorted(front), strict=True), where="post", color=charts.MAIN, lw=1,
                  alpha=0.6, label="Pareto front")  # fmt: skip
        for place, compared, on in zip(places, rows, on_front, strict=True):
            colour = charts.MAIN if on else charts.SECOND
            _point(axes, (place, math.nan, math.nan), compared.score, colour)
        axes.plot([], [], "o", ms=5, color=charts.SECOND, label="not on it")
        if min(places) > 0:
            axes.set_xscale("log")
        elif max(places) > 0:
            # What is solved in closed form has no step, and a logarithm has no zero.
            axes.set_xscale("symlog", linthresh=min(p for p in places if p), linscale=0.3)
        axes.margins(x=0.08)
        axes.set_xlabel(_NAMES[cost])
        axes.set_ylabel(_axis(outcome))
        axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        points = [(p, x.score.value) for p, x in zip(places, rows, strict=True)]
        label_beside(axes, [(*p, label) for p, label in zip(points, labels, strict=True)])
    return drawing


def off_against_on(
    comparison: Comparison, extra: Extra, outcome: Outcome, name: str
) -> Drawing | None:
    """A score off the distribution against the one on it; None where no row has both.

    Args:
      comparison: of a table.
      extra: the score off the distribution.
      outcome: which it is of.
      name: of the drawing.
    """
    rows = [
        (x.row.line.label, x.score, extra.estimates[x.row.line.name])
        for x in comparison.rows
        if not math.isnan(x.score.value + extra.estimates[x.row.line.name].value)
    ]
    if not rows:
        return None
    labels = [label for label, *_ in rows]
    title = f"{extra.name.capitalize()} against test {outcome.metric}"
    with drawn(name, title, width_for(labels), height_for(len(rows))) as (grid, drawing):
        axes = grid[0, 0]
        for _, on, off in rows:
            _point(axes, (on.value, on.low, on.high), off, charts.MAIN)
        axes.margins(0.1)
        limits = axes.get_xlim(), axes.get_ylim()
        axes.axline((0, 0), slope=1, ls="--", color=charts.SOFT, lw=1, zorder=0, label="equal")
        axes.set(xlim=limits[0], ylim=limits[1])
        axes.set_xlabel(_axis(outcome))
        axes.set_ylabel(f"{one_line(extra.name)} (95 % interval)", parse_math=False)
        axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
        label_beside(axes, [(on.value, off.value, label) for label, on, off in rows])
    return drawing


def _axis(outcome: Outcome) -> str:
    less = "" if outcome.better == "max" else ", less is better"
    return f"test {outcome.metric} (95 % interval{less})"


def _point(axes: Any, across: tuple[float, float, float], score: Estimate, colour: str) -> None:
    """A point with the intervals there are; `across` is value, low and high on the x axis."""
    x, left, right = across
    bars: dict[str, Any] = {}
    if not math.isnan(score.low):
        bars["yerr"] = [[score.value - score.low], [score.high - score.value]]
    if not math.isnan(left):
        bars["xerr"] = [[x - left], [right - x]]
    axes.errorbar(x, score.value, **bars, fmt="o", ms=5, color=colour, capsize=3, elinewidth=1)

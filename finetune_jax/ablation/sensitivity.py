"""How much each row's validation score depends on what was tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune_jax.ablation.drawing import Drawing, drawn, elided
from finetune_jax.ablation.outcome import Outcome, Row
from finetune_jax.ablation.search import Trial
from finetune_jax.ablation.statistics import Comparison
from finetune_jax.reporting import charts

_COLUMNS = 3


def sensitivity(comparison: Comparison, outcome: Outcome) -> list[Drawing]:
    """A figure for every numeric key of which several values were tried, with axes for each row.

    A line joins the best values over the other keys; `Trial.value`, of which more is better, is
    shown as the metric itself.

    Args:
      comparison: of a table.
      outcome: which it is of.
    """
    rows = [x.row for x in comparison.rows]
    keys = dict.fromkeys(key for row in rows for trial in row.trials for key in trial.point)
    found = []
    for number, key in enumerate(keys):
        values = {t.point[key] for row in rows for t in row.trials if key in t.point}
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if numeric and len(values) > 1:
            found.append(_draw(rows, key, sorted(values), outcome, f"tuned_{number}"))
    return found


def _draw(
    rows: Sequence[Row], key: str, values: Sequence[float], outcome: Outcome, name: str
) -> Drawing:
    columns = min(_COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    title = f"Validation {outcome.metric} against {key}"
    sign = 1 if outcome.better == "max" else -1
    with drawn(name, title, 0.6 + 2.9 * columns, 0.9 + 1.9 * lines, lines, columns) as (
        grid,
        drawing,
    ):
        for axes, row in zip(grid.flat, rows, strict=False):
            _panel(axes, row, key, sign)
            axes.set_title(elided(row.line.label, 44), fontsize=8, parse_math=False)
        for axes in grid.flat[len(rows) :]:
            axes.set_visible(False)
        if values[0] > 0 and values[-1] >= 10 * values[0]:
            grid[0, 0].set_xscale("log")
        for axes in grid[:, 0]:
            axes.set_ylabel(f"validation {outcome.metric}", fontsize=8.5)
        below = [grid[-1 if i < len(rows) - columns * (lines - 1) else -2, i]
                 for i in range(columns)]  # fmt: skip
        for axes in below:
            axes.set_xlabel(key.rpartition(".")[2])
            axes.tick_params(labelbottom=True)
        handles = {t: h for axes in grid.flat
                   for h, t in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
        grid[0, 0].figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=8
        )
    return drawing


def _panel(axes: Any, row: Row, key: str, sign: int) -> None:
    whole = [t for t in row.trials if t.share == 1.0 and t.value is not None and key in t.point]
    shorter = [t for t in row.trials if t.share < 1.0 and t.value is not None and key in t.point]
    failed = [t for t in row.trials if t.value is None and key in t.point]
    best: dict[float, Trial] = {}
    for trial in whole:
        at = trial.point[key]
        best[at] = max(best.get(at, trial), trial, key=lambda t: t.value)
    line = [(at, sign * best[at].value) for at in sorted(best)]
    if line:
        axes.plot(*zip(*line, strict=True), color=charts.MAIN, lw=1.2)
    for some, style, label in (
        (shorter, {"mfc": "none", "color": charts.SOFT}, "tried for a shorter run"),
        (whole, {"color": charts.MAIN}, "tried"),
    ):
        if some:
            axes.plot([t.point[key] for t in some], [sign * t.value for t in some], "o", ms=4,
                      label=label, **style)  # fmt: skip
    if failed:
        axes.plot([t.point[key] for t in failed], [0.04] * len(failed), "x", color=charts.WARN,
                  transform=axes.get_xaxis_transform(), label="failed")  # fmt: skip
    chosen = [t for t in whole if t.point == row.point]
    if chosen:
        axes.plot(chosen[0].point[key], sign * chosen[0].value, "*", ms=11, color=charts.SECOND,
                  label="chosen")  # fmt: skip

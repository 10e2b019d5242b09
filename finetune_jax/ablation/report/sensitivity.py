"""Draws how much the validation score of each row depends on the tuned hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report.base import Comparison
from finetune_jax.ablation.report.drawing import Drawing, new_drawing, shorten, width
from finetune_jax.ablation.search.base import Trial
from finetune_jax.metrics import names
from finetune_jax.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_TITLE = {1: 44, 2: 40, 3: 26}
"""Letters of the title of a row, by the number of columns of axes."""


def sensitivity(comparison: Comparison, outcome: Outcome) -> list[Drawing]:
    """A figure for every numeric key with several tried values, with axes for each row.

    A line joins the best values over the other keys. `Trial.value`, where more is always better, is
    converted back to the metric.

    Args:
      comparison: comparison of the rows of a table.
      outcome: outcome that the table belongs to.
    """
    rows = [x.row for x in comparison.rows]
    keys = dict.fromkeys(key for row in rows for trial in row.trials for key in trial.point)
    drawings = []
    for number, key in enumerate(keys):
        values = {t.point[key] for row in rows for t in row.trials if key in t.point}
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if numeric and len(values) > 1:
            drawings.append(_draw(rows, key, sorted(values), outcome, f"tuned_{number}"))
    return drawings


def _draw(
    rows: Sequence[TableRow], key: str, values: Sequence[float], outcome: Outcome, name: str
) -> Drawing:
    columns = 1 if style.is_narrow() else min(_COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    title = f"Validation {names.named(outcome.metric).name} against {key}"
    sign = 1 if outcome.better == "max" else -1
    size = width(), 0.9 + 1.7 * lines
    with new_drawing(name, title, *size, rows=lines, columns=columns) as (grid, drawing):
        for axes, row in zip(grid.flat, rows, strict=False):
            _draw_row(axes, row, key, sign)
            title_of_row = shorten(row.spec.label, _TITLE[columns])
            axes.set_title(title_of_row, fontsize=style.SMALL, parse_math=False)
        for axes in grid.flat[len(rows) :]:
            axes.set_visible(False)
        if values[0] > 0 and values[-1] >= 10 * values[0]:
            grid[0, 0].set_xscale("log")
        _tick_what_was_tried(grid[0, 0], values, 4 if columns > 1 else 6)
        for axes in grid[:, 0]:
            axes.set_ylabel(f"validation {names.heading(outcome.metric)}")
            style.in_percent(axes.yaxis, outcome.metric)
        lowest = [grid[-1 if i < len(rows) - columns * (lines - 1) else -2, i]
                  for i in range(columns)]  # fmt: skip
        for axes in lowest:
            axes.set_xlabel(key.rpartition(".")[2])
            axes.tick_params(labelbottom=True)
        handles = {t: h for axes in grid.flat
                   for h, t in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
        in_a_line = 2 if style.is_narrow() else 4
        grid[0, 0].figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=in_a_line
        )
    return drawing


def _tick_what_was_tried(axes: Axes, values: Sequence[float], count: int) -> None:
    """Ticks at values that were tried, and at no others: nobody trains 2.5 epochs.

    Args:
      axes: axes whose x axis all axes of the figure share.
      values: the tried values, ascending.
      count: number of ticks for which there is room.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    log = axes.get_xscale() == "log"
    places = [math.log(value) if log else value for value in values]
    apart = (places[-1] - places[0]) / count
    kept = [values[-1]]
    for place, value in zip(places[-2::-1], values[-2::-1], strict=True):
        last = math.log(kept[-1]) if log else kept[-1]
        if last - place >= 0.99 * apart:
            kept.append(value)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_row(axes: Axes, row: TableRow, key: str, sign: int) -> None:
    trials = [trial for trial in row.trials if key in trial.point]
    full = [trial for trial in trials if trial.value is not None and trial.share == 1.0]
    short = [trial for trial in trials if trial.value is not None and trial.share < 1.0]
    failed = [trial for trial in trials if trial.value is None]
    best: dict[float, Trial] = {}
    for trial in full:
        value = trial.point[key]
        best[value] = max(best.get(value, trial), trial, key=lambda t: t.sort_key)
    if best:
        values = sorted(best)
        axes.plot(values, [sign * best[value].sort_key for value in values], color=style.MAIN,
                  lw=1.2)  # fmt: skip
    for some, color, fill, label in (
        (short, style.FAINT, "none", "tried for a shorter run"),
        (full, style.MAIN, style.MAIN, "tried"),
    ):
        if some:
            axes.plot([t.point[key] for t in some], [sign * t.sort_key for t in some], "o", ms=4,
                      label=label, color=color, mfc=fill)  # fmt: skip
    if failed:
        axes.plot([t.point[key] for t in failed], [0.04] * len(failed), "x", color=style.WARN,
                  transform=axes.get_xaxis_transform(), label="failed")  # fmt: skip
    chosen = [trial for trial in full if trial.point == row.point]
    if chosen:
        axes.plot(chosen[0].point[key], sign * chosen[0].sort_key, "*", ms=11, color=style.SECOND,
                  label="chosen")  # fmt: skip

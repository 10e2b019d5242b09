"""Which stages of a model to tune: the scores of surgical schemes as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from finetune_jax.ablation.drawing import Drawing, drawn, elided
from finetune_jax.ablation.layout import without_common
from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.statistics import Compared, Comparison
from finetune_jax.errors import UserError
from finetune_jax.grammar import parse_sequence
from finetune_jax.reporting import charts
from finetune_jax.reporting.html import number

_PARTS = frozenset(("stages", "first_k", "last_k"))
_HEADS = frozenset(("head", "linear_probe"))
_LEAST = 3
"""Schemes of a part of the model, below which there is no map."""


def stage_map(comparisons: Sequence[Comparison], outcome: Outcome) -> Drawing | None:
    """Schemes that train whole stages, by what else varies; None where `stage_scores` are few.

    Whatever else the rows of an outcome differ in, data among it, makes the columns (Lee et al.
    2022, arXiv 2210.11466, figure 2). Colours compare within a column.

    Args:
      comparisons: all tables of the outcome.
      outcome: which they are of.
    """
    found = stage_scores(comparisons)
    return _draw(*found, outcome) if found else None


def stage_scores(
    comparisons: Sequence[Comparison],
) -> tuple[list[str], list[str], np.ndarray] | None:
    """The scores of the schemes that train whole stages.

    Args:
      comparisons: all tables of an outcome.

    Returns:
      Schemes, columns, and scores f64[schemes, columns], nan where a row is missing or failed; None
      where fewer than three schemes train a part of the stages, or nothing was scored.
    """
    cells: dict[tuple[str, str], float] = {}
    parts = set()
    tables = without_common([c.name for c in comparisons])
    for table, comparison in zip(tables, comparisons, strict=True):
        for compared in comparison.rows:
            scheme = compared.row.line.overrides.get("scheme")
            kind = _kind(scheme)
            if not kind:
                continue
            if kind == "part":
                parts.add(scheme)
            column = ", ".join(part for part in (table, _rest(compared)) if part)
            cells[scheme, column] = compared.score.value
    if len(parts) < _LEAST or all(map(math.isnan, cells.values())):
        return None
    schemes, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    values = np.array([[cells.get((s, c), math.nan) for c in columns] for s in schemes])
    return schemes, columns, values


def _kind(scheme: object) -> str:
    """``part`` of the stages, ``whole`` for one to compare with, or empty for another scheme."""
    if not isinstance(scheme, str):
        return ""
    try:
        phases = parse_sequence(scheme)
    except UserError:
        return ""
    names = {call.name for call in phases[0]}
    if len(phases) > 1 or not names <= _PARTS | _HEADS | {"full"}:
        return ""
    return "part" if names & _PARTS else "whole"


def _rest(compared: Compared) -> str:
    """What the row overrides beside its scheme and its table's data."""
    return ", ".join(
        f"{key.rpartition('.')[2]}={value}"
        for key, value in compared.row.line.overrides.items()
        if key != "scheme" and key.split(".")[0] not in ("data", "task")
    )


def _draw(
    schemes: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    outcome: Outcome,
) -> Drawing:
    sign = 1 if outcome.better == "max" else -1
    best = [max((sign * v for v in column if not math.isnan(v)), default=math.nan)
            for column in values.T]  # fmt: skip
    gaps = sign * values - np.array(best)
    labels = [elided(scheme) for scheme in schemes]
    width = 1.5 + 0.075 * max(map(len, labels)) + max(0.85 * len(columns), 2.0)
    tall = 1.4 + 0.36 * len(schemes) + 0.04 * max(map(len, columns))
    title = f"Test {outcome.metric} of schemes that train whole stages"
    with drawn("stages", title, width, tall) as (grid, drawing):
        axes = grid[0, 0]
        axes.imshow(gaps, cmap="Blues", vmin=min(np.nanmin(gaps), -1e-9) * 1.4, vmax=0,
                    aspect="auto")  # fmt: skip
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_yticks(range(len(schemes)), labels, parse_math=False)
        axes.set_xticks(range(len(columns)), map(elided, columns), rotation=30, ha="right",
                        rotation_mode="anchor", parse_math=False)  # fmt: skip
        dark = 0.5 * np.nanmin(gaps)
        for i, j in np.argwhere(~np.isnan(values)):
            colour = "white" if gaps[i, j] > dark else charts.INK
            axes.text(j, i, number(float(values[i, j])), ha="center", va="center", size=8,
                      color=colour)  # fmt: skip
        axes.set_title(f"test {outcome.metric}; the darker, the nearer to its column's best",
                       fontsize=8.5)  # fmt: skip
    return drawing

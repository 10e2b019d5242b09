"""A heat map of the scores of schemes that train whole stages: which stages to fine-tune."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.report.base import ComparedRow, Comparison
from finetune_jax.ablation.report.drawing import Drawing, new_drawing, shorten, width
from finetune_jax.ablation.report.layout import without_common
from finetune_jax.errors import UserError
from finetune_jax.grammar import parse_sequence
from finetune_jax.metrics import names
from finetune_jax.reporting import charts, style

_STAGE_SCHEMES = frozenset(("stages", "first_k", "last_k"))
_HEAD_SCHEMES = frozenset(("head", "linear_probe"))
_MIN_SCHEMES = 3
"""Smallest number of schemes that train some of the stages, for which a map is drawn."""


def stage_map(comparisons: Sequence[Comparison], outcome: Outcome) -> Drawing | None:
    """A heat map with one line per scheme (Lee et al. 2022, arXiv 2210.11466, figure 2).

    The columns are the combinations of everything else that the rows differ in, such as data.
    Colors compare scores within a column.

    Args:
      comparisons: all tables of the outcome.
      outcome: the outcome.

    Returns:
      None where `stage_scores` is None.
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
      if fewer than three schemes train some of the stages, or if nothing was scored.
    """
    cells: dict[tuple[str, str], float] = {}
    schemes_of_some_stages = set()
    tables = without_common([c.name for c in comparisons])
    for table, comparison in zip(tables, comparisons, strict=True):
        for compared in comparison.rows:
            scheme = compared.row.spec.overrides.get("scheme")
            if not isinstance(scheme, str) or not (kind := _kind(scheme)):
                continue
            if kind == "some":
                schemes_of_some_stages.add(scheme)
            column = ", ".join(part for part in (table, _other_overrides(compared)) if part)
            cells[scheme, column] = compared.score.value
    if len(schemes_of_some_stages) < _MIN_SCHEMES or all(map(math.isnan, cells.values())):
        return None
    schemes, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    values = np.array([[cells.get((s, c), math.nan) for c in columns] for s in schemes])
    return schemes, columns, values


def _kind(scheme: str) -> str:
    """``some`` if a scheme trains some of the stages, ``reference`` if it trains all stages or the
    head alone, and empty for any other scheme."""
    try:
        phases = parse_sequence(scheme)
    except UserError:
        return ""
    names = {call.name for call in phases[0]}
    if len(phases) > 1 or not names <= _STAGE_SCHEMES | _HEAD_SCHEMES | {"full"}:
        return ""
    return "some" if names & _STAGE_SCHEMES else "reference"


def _other_overrides(compared: ComparedRow) -> str:
    """The overrides of a row except its scheme, its data and its task, as text."""
    return ", ".join(
        f"{key.rpartition('.')[2]}={value}"
        for key, value in compared.row.spec.overrides.items()
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
    narrow = style.is_narrow()
    labels = [shorten(scheme, 16 if narrow else 44) for scheme in schemes]
    # A narrow figure has no room for the scores, which the table has too.
    room = 96 * width() - 7.5 * max(map(len, labels)) - 40
    written = room / len(columns) >= 48
    named = room / len(columns) >= 16
    height = 1.4 + 0.32 * len(schemes) + 0.078 * named * max(len(shorten(c, 32)) for c in columns)
    title = f"Test {names.named(outcome.metric).name} of schemes that train whole stages"
    with new_drawing("stages", title, width(), height) as (grid, drawing):
        axes = grid[0, 0]
        shares = 1 - gaps / (min(np.nanmin(gaps), -1e-9) * 1.4)
        axes.imshow(charts.shaded(np.nan_to_num(shares)), aspect="auto")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_yticks(range(len(schemes)), labels, parse_math=False)
        if named:
            axes.set_xticks(range(len(columns)), [shorten(c, 32) for c in columns], rotation=90,
                            parse_math=False)  # fmt: skip
        else:
            axes.set_xticks([])
        dark = 0.5 * np.nanmin(gaps)
        for i, j in np.argwhere(~np.isnan(values)) if written else ():
            color = style.ON_MAIN if gaps[i, j] > dark else style.INK
            text = names.written(outcome.metric, float(values[i, j]), unit=False)
            axes.text(j, i, text, ha="center", va="center", size=style.SMALL,
                      color=color)  # fmt: skip
        heading = f"test {names.heading(outcome.metric)}; " * (not narrow)
        axes.set_title(f"{heading}darker: closer to the column's best", fontsize=style.SMALL)
    return drawing

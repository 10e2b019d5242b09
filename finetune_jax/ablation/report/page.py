"""The HTML page of an ablation: tables, figures and provenance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.report import layout
from finetune_jax.ablation.report.base import ComparedRow, Comparison, ExtraColumn
from finetune_jax.ablation.report.drawing import Drawing
from finetune_jax.ablation.report.sentences import titled
from finetune_jax.metrics import names
from finetune_jax.reporting import html, style

Section = tuple[str, str]
"""Heading and HTML content."""

BothForms = tuple[Drawing, Drawing]
"""A figure for wide screens, and the same figure for narrow screens."""

# The table of an ablation has many columns, and its costs belong beside its scores: long texts and
# intervals are broken into lines, so that all columns fit on a screen of 1,200 pixels. Where they
# do not fit, the first column stays visible while the table scrolls.
_STYLE = """
header, main, footer { max-width: 1392px; }
.compare .scroll { max-height: 720px; }
.compare table { font-size: 13px; line-height: 1.35; }
.compare th, .compare td { white-space: normal; vertical-align: top; padding: 5px; }
.compare thead th { padding: 0; vertical-align: bottom; }
.compare th button { padding: 6px 5px; }
.compare th:not([aria-sort]) button::after { content: none; }
.compare th button:hover { text-decoration: underline; }
.compare td.n { white-space: nowrap; }
.compare td.words { min-width: 104px; }
@media (max-width: 1280px) {
  header, main, footer { padding-left: 12px; padding-right: 12px; } section { padding: 16px; }
}
.compare td small { display: block; font-size: 12px; color: var(--soft); }
.compare td:first-child, .compare thead th:first-child { position: sticky; left: 0; }
.compare td:first-child { background: var(--paper); font-weight: 600; }
.compare thead th:first-child { z-index: 1; }
.compare tbody tr:hover td:first-child { background: var(--hover); }
.rows { font-size: 13px; margin: 4px 0 0; padding-left: 30px; }
"""


@dataclasses.dataclass(frozen=True)
class TableReport:
    """What the page shows for one table.

    Attributes:
      comparison: comparison of the rows of the table.
      extra: extra columns of the table.
      drawings: figures of the table, each for wide and for narrow screens.
    """

    comparison: Comparison
    extra: Sequence[ExtraColumn]
    drawings: Sequence[BothForms]


def page(outcome: Outcome, tables: Sequence[TableReport], overall: Sequence[BothForms]) -> str:
    """The complete HTML document, which loads no other file.

    Args:
      outcome: outcome of the ablation.
      tables: the tables of the outcome.
      overall: figures about all tables, each for wide and for narrow screens.
    """
    sections: list[Section] = []
    for table in tables:
        heading = table.comparison.name or f"Test {names.named(outcome.metric).name}"
        content = _table(table.comparison, table.extra, outcome) + _figures(table.drawings)
        sections.append((heading, content))
    sections += [(wide.title, _figures([(wide, narrow)])) for wide, narrow in overall]
    sections.append(("Provenance", _provenance(outcome)))
    title = str(outcome.provenance.get("config", "")) or "Ablation"
    return html.page(title, _header(outcome, tables), sections, "finetune_jax ablate")


def _header(outcome: Outcome, tables: Sequence[TableReport]) -> str:
    budgets = sorted({table.comparison.budget for table in tables})
    seeds = ", ".join(map(str, outcome.seeds))
    failed = sum(row.point is None or bool(row.errors) for row in outcome.rows)
    cards = [
        (
            names.named(outcome.metric).name,
            "metric",
            f"{'more' if outcome.better == 'max' else 'less'} is better",
        ),
        (str(len(outcome.rows)), "rows", f"{failed} with failures" if failed else ""),
        (str(len(outcome.seeds)), "seeds scored", f"{seeds}; once, on test"),
        (
            " / ".join(f"{budget:g}" for budget in budgets),
            "runs to tune each row",
            f"on validation, seeds of each point: {outcome.tuning_seeds}",
        ),
    ]
    boxes = [
        f'<div class="card"><b>{html.text(value)}</b>{html.text(name)}<br>'
        f"<span>{html.text(more)}</span></div>"
        for value, name, more in cards
    ]
    lead = html.text(outcome.provenance.get("command", ""))
    results = "".join(
        f'<p class="result">{html.text(titled(table.comparison, outcome))}</p>' for table in tables
    )
    return (
        f'<style>{_STYLE}</style>{results}<p class="lead">{lead}</p>'
        f'<div class="cards">{"".join(boxes)}</div>'
    )


def _table(comparison: Comparison, extra: Sequence[ExtraColumn], outcome: Outcome) -> str:
    """The table with numbers that a browser can sort; each column has one unit."""
    rows = comparison.rows
    flops = max((x.row.cost.step_flops for x in rows if x.row.cost), default=0.0)
    power = min(4, int(math.log(flops, 1000))) if flops >= 1 else 0
    unit = ("", "k", "M", "G", "T")[power]
    header = [
        "row", "chosen", names.heading(outcome.metric),
        f"{layout.difference_heading(outcome)}, to {comparison.reference}",
        "p", "trained scalars", "trained, %", f"{unit}FLOPs/step",
        "peak memory, MiB", "optimizer, MiB", "checkpoint, MiB", "seconds",
        *(column.heading for column in extra), "marks",
    ]  # fmt: skip
    cells = [
        [
            compared.row.spec.label,
            layout.chosen(compared.row),
            layout.score_text(compared, outcome),
            layout.difference_text(compared, comparison.reference, outcome),
            layout.p_value_text(compared.p_holm),
            *_cost_cells(compared, power),
            *(_extra_cell(column, compared) for column in extra),
            layout.marks(compared),
        ]
        for compared in rows
    ]
    notes = "".join(
        f"<li>{html.text(note)}</li>" for note in layout.notes(comparison, extra, outcome)
    )
    return (
        f"<p>{html.text(layout.caption(comparison, outcome))}</p>"
        + '<div class="compare">'
        + html.table(header, cells, numeric=range(2, len(header) - 1), words=(0, 1))
        + "</div>"
        + f"<details open><summary>Notes</summary><ul>{notes}</ul></details>"
    )


def _cost_cells(compared: ComparedRow, power: int) -> list[Any]:
    """Trained scalars, their share, FLOPs in units of 1000**power, MiB and seconds of a row."""
    cost = compared.row.cost
    if cost is None:
        return [None] * 7
    sizes = (cost.peak_bytes, cost.optimizer_bytes, cost.checkpoint_bytes)
    return [
        cost.trainable,
        _digits(100 * cost.trainable / cost.total, 3),
        _digits(cost.step_flops / 1000**power, 4),
        *(_digits(size / 2**20, 4) for size in sizes),
        f"{cost.seconds:.1f}",
    ]


def _digits(value: float, count: int) -> str:
    """A number with its first digits and without an exponent, such as 0.0000962."""
    return np.format_float_positional(value, count, unique=False, fractional=False, trim="-")


def _extra_cell(column: ExtraColumn, compared: ComparedRow) -> str:
    if column.not_run:
        return "not run"
    return layout.interval(column.estimates[compared.row.spec.name], column.score)


def _figures(drawings: Sequence[BothForms]) -> str:
    parts = []
    for wide, narrow in drawings:
        rows = "".join(f"<li>{html.name(label)}</li>" for label in narrow.rows)
        numbers = f'<ol class="rows">{rows}</ol>' if rows else ""
        drawn = style.pair(wide.svg, narrow.svg + numbers)
        parts.append(f"<p>{html.text(wide.title)}</p>{html.figure(drawn, wide.title)}")
    return "".join(parts)


def _provenance(outcome: Outcome) -> str:
    known = outcome.provenance
    rows = [
        [name.replace("_", " "), known[name]]
        for name in ("config", "config_hash", "command")
        if name in known
    ]
    if "seconds" in known:
        rows.append(["sum of time over all calls", f"{known['seconds']:,.0f} s"])
    rows += [[f"version of {name}", text] for name, text in known.get("versions", {}).items()]
    rows += [["accepted change", text] for text in known.get("accepted", [])]
    more = "more" if outcome.better == "max" else "less"
    rows.append(["metric", f"{names.named(outcome.metric).name}, {more} is better"])
    rows.append(["seeds scored", ", ".join(map(str, outcome.seeds))])
    rows.append(["number of seeds of each point while tuning", str(outcome.tuning_seeds)])
    rows += [
        [f"budget, {name}" if name else "budget of every row", f"{found[0].budget:g} runs"]
        for name, found in outcome.tables.items()
    ]
    rows += [
        [f"overrides of {row.spec.name}", _overrides_text(row.spec.overrides)]
        for row in outcome.rows
    ]
    return html.table(["what", "value"], rows, words=(0, 1))


def _overrides_text(overrides: Overrides) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in overrides.items()) or "none"

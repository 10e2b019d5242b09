"""One HTML page about an ablation: its tables, its figures, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune_jax.ablation import layout
from finetune_jax.ablation.drawing import Drawing
from finetune_jax.ablation.extras import Extra
from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.statistics import Comparison, Estimate
from finetune_jax.reporting import html

Section = tuple[str, str]
"""Heading and HTML."""

# Tables are wider than the page: the names of the rows stay in sight.
_STYLE = """
.scroll td:first-child, .scroll thead th:first-child { position: sticky; left: 0; }
.scroll td:first-child { background: #ffffff; } .scroll thead th:first-child { z-index: 1; }
"""


def page(
    outcome: Outcome,
    parts: Sequence[tuple[Comparison, Sequence[Extra], Sequence[Drawing]]],
    overall: Sequence[Drawing],
) -> str:
    """The whole document, which fetches nothing.

    Args:
      outcome: of the ablation.
      parts: each of its tables with its further columns and its figures.
      overall: figures of all tables together.
    """
    sections: list[Section] = []
    for comparison, further, drawings in parts:
        heading = comparison.name or f"Test {outcome.metric}"
        sections.append((heading, _table(comparison, further, outcome) + _figures(drawings)))
    sections += [(drawing.title, _figures([drawing])) for drawing in overall]
    sections.append(("Provenance", _provenance(outcome)))
    title = str(outcome.about.get("config", "")) or "Ablation"
    return html.page(title, _header(outcome, parts), sections, "finetune_jax ablate")


def _header(outcome: Outcome, parts: Sequence[tuple[Comparison, Any, Any]]) -> str:
    budgets = sorted({comparison.budget for comparison, *_ in parts})
    seeds = ", ".join(map(str, outcome.seeds))
    failed = sum(row.point is None or bool(row.errors) for row in outcome.rows)
    cards = [
        (outcome.metric, "metric", f"{'more' if outcome.better == 'max' else 'less'} is better"),
        (str(len(outcome.rows)), "rows", f"{failed} with failures" if failed else ""),
        (str(len(outcome.seeds)), "seeds scored", f"{seeds}; once, on test"),
        (
            " / ".join(f"{budget:g}" for budget in budgets),
            "runs to tune each row",
            f"on validation, each point over {outcome.tuned_over}",
        ),
    ]
    boxes = [
        f'<div class="card"><b>{html.text(value)}</b>{html.text(name)}<br>'
        f"<span>{html.text(more)}</span></div>"
        for value, name, more in cards
    ]
    lead = html.text(outcome.about.get("command", ""))
    return (
        f'<style>{_STYLE}</style><p class="lead">{lead}</p>'
        f'<div class="cards">{"".join(boxes)}</div>'
    )


def _table(comparison: Comparison, further: Sequence[Extra], outcome: Outcome) -> str:
    """The table with numbers that a browser can sort by: each column in one unit."""
    rows = comparison.rows
    flops = max((x.row.cost.step_flops for x in rows if x.row.cost), default=0.0)
    power = min(4, int(math.log(flops, 1000))) if flops >= 1 else 0
    unit = ("", "k", "M", "G", "T")[power]
    header = [
        "row", "chosen", outcome.metric, f"difference to {comparison.reference}",
        "p, examples", "p, seeds", "trained scalars", "trained, %", f"{unit}FLOPs/step",
        "peak memory, MiB", "optimizer, MiB", "checkpoint, MiB", "seconds",
        *(extra.name for extra in further), "marks",
    ]  # fmt: skip
    cells: list[list[Any]] = []
    for compared in rows:
        row, found = compared.row, compared.difference
        line: list[Any] = [row.line.label, layout.chosen(row), layout.scored(compared, outcome)]
        line.append(layout.difference(compared, comparison.reference))
        line += [found.p_examples_holm, found.p_seeds_holm] if found else [None, None]
        if row.cost:
            sizes = (row.cost.peak_bytes, row.cost.optimizer_bytes, row.cost.checkpoint_bytes)
            line += [row.cost.trainable, f"{100 * row.cost.trainable / row.cost.total:.3g}"]
            line.append(f"{row.cost.step_flops / 1000**power:.4g}")
            line += [*(f"{size / 2**20:.4g}" for size in sizes), f"{row.cost.seconds:.1f}"]
        else:
            line += [None] * 7
        line += [_further(extra, extra.estimates[row.line.name]) for extra in further]
        cells.append([*line, layout.marks(compared)])
    notes = "".join(
        f"<li>{html.text(note)}</li>" for note in layout.notes(comparison, further, outcome)
    )
    return (
        f"<p>{html.text(layout.caption(comparison, outcome))}</p>"
        + html.table(header, cells, numeric=range(2, len(header) - 1))
        + f"<details open><summary>Notes</summary><ul>{notes}</ul></details>"
    )


def _further(extra: Extra, found: Estimate) -> str:
    return "not run" if extra.not_run else layout.interval(found)


def _figures(drawings: Sequence[Drawing]) -> str:
    return "".join(
        f"<p>{html.text(drawing.title)}</p>{html.figure(drawing.svg, drawing.title)}"
        for drawing in drawings
    )


def _provenance(outcome: Outcome) -> str:
    about = outcome.about
    rows = [[name.replace("_", " "), about[name]] for name in ("config", "config_hash", "command")
            if name in about]  # fmt: skip
    if "seconds" in about:
        rows.append(["wall time", f"{about['seconds']:.0f} s in the last call of the command"])
    rows += [[f"version of {name}", text] for name, text in about.get("versions", {}).items()]
    rows.append(["metric", f"{outcome.metric}, {outcome.better}"])
    rows.append(["seeds scored", ", ".join(map(str, outcome.seeds))])
    rows.append(["seeds of each point while tuning", str(outcome.tuned_over)])
    rows += [
        [f"budget, {name}" if name else "budget of every row", f"{found[0].budget:g} runs"]
        for name, found in outcome.tables.items()
    ]
    rows += [[f"overrides of {row.line.name}", _said(row.line.overrides)] for row in outcome.rows]
    return html.table(["what", "value"], rows)


def _said(overrides: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in overrides.items()) or "none"

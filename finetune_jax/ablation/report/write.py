"""Writes the report of an ablation: tables in three formats, figures in two, and one HTML page."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report import tables
from finetune_jax.ablation.report.base import ComparedRow, Comparison
from finetune_jax.ablation.report.extra_columns import extra_columns
from finetune_jax.ablation.report.figures import figures
from finetune_jax.ablation.report.layout import lay_out, without_common
from finetune_jax.ablation.report.page import TableReport, page
from finetune_jax.ablation.report.sentences import sentences, titled
from finetune_jax.ablation.report.stage_map import stage_map
from finetune_jax.ablation.report.statistics import compare, defined
from finetune_jax.disk import make_folder
from finetune_jax.errors import UserError
from finetune_jax.files import plain
from finetune_jax.reporting.style import for_narrow_screens
from finetune_jax.tables import table

# Columns of the tables on the terminal, beside the first five columns.
_ON_TERMINAL = ("trained", "FLOPs/step", "marks")


def write_report(outcome: Outcome, folder: Path) -> list[Path]:
    """Writes ``index.html``, and for each table ``table.md``, ``.tex``, ``.csv`` and its figures.

    ``summary.json`` has the results of all tables in sentences and in numbers. If there are several
    tables, the files of each table have a prefix made from its name. Figures are PNG and PDF. Each
    file is written completely or not at all; other files of the folder are not changed.

    Args:
      outcome: outcome of the ablation.
      folder: folder of the report, which is created if it does not exist.

    Returns:
      The paths of the files, ordered by table.

    Raises:
      UserError: the rows of a table cannot be compared, predictions are missing, or the folder
        cannot be written.
    """
    comparisons = compare(outcome)
    make_folder(folder, str(folder))  # checked before minutes of resampling and drawing
    contents: dict[str, str | bytes] = {}
    reports = []
    for prefix, comparison in zip(_prefixes(list(outcome.tables)), comparisons, strict=True):
        extra = extra_columns([x.row for x in comparison.rows], outcome.metric)
        laid_out = lay_out(comparison, extra, outcome)
        drawings = figures(comparison, extra, outcome)
        contents[f"{prefix}table.md"] = tables.markdown(laid_out)
        contents[f"{prefix}table.tex"] = tables.latex(laid_out)
        contents[f"{prefix}table.csv"] = tables.csv_text(comparison, extra, outcome)
        for drawing in drawings:
            contents[f"{prefix}{drawing.name}.png"] = drawing.png
            contents[f"{prefix}{drawing.name}.pdf"] = drawing.pdf
        with for_narrow_screens():
            narrow = figures(comparison, extra, outcome)
        reports.append(TableReport(comparison, extra, list(zip(drawings, narrow, strict=True))))
    overall = [drawing for drawing in [stage_map(comparisons, outcome)] if drawing]
    with for_narrow_screens():
        narrow = [drawing for drawing in [stage_map(comparisons, outcome)] if drawing]
    for drawing in overall:
        contents[f"{drawing.name}.png"] = drawing.png
        contents[f"{drawing.name}.pdf"] = drawing.pdf
    contents["summary.json"] = _summary(outcome, comparisons)
    contents["index.html"] = page(outcome, reports, list(zip(overall, narrow, strict=True)))
    try:
        return [_write(folder / name, content) for name, content in contents.items()]
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None


def terminal_tables(outcome: Outcome) -> str:
    """The tables for a terminal: score, difference and main costs of every row, and the result.

    Raises:
      UserError: the rows of a table cannot be compared.
    """
    parts = []
    comparisons = compare(outcome)
    for comparison in comparisons:
        laid_out = lay_out(comparison, [], outcome)
        columns = [i for i, name in enumerate(laid_out.header) if name in _ON_TERMINAL or i < 5]
        rows = [[row[i] for i in columns] for row in laid_out.rows]
        text = table([laid_out.header[i] for i in columns], rows, left=2)
        parts.append(f"{laid_out.title}\n{laid_out.caption}\n\n{text}")
    return "\n\n".join([*parts, *(titled(x, outcome) for x in comparisons)])


def best_run(outcome: Outcome) -> tuple[str, Path] | None:
    """Label of the row with the best mean validation score, and the folder of its first run.

    The test split chooses nothing. None without scored runs, and where there are several tables.
    """
    sign = 1 if outcome.better == "max" else -1
    rows = [row for row in outcome.rows if row.predictions and row.validation]
    if not rows or len(outcome.tables) > 1:
        return None

    def score(row: TableRow) -> float:
        values = [x.get(outcome.metric) for x in row.validation.values()]
        known = [value for value in values if value is not None and defined(value)]
        if len(known) < len(values):
            return -math.inf
        return sign * math.fsum(known) / len(known)

    best = max(rows, key=score)
    return best.spec.label, best.predictions[min(best.predictions)].parent


def _summary(outcome: Outcome, comparisons: Sequence[Comparison]) -> str:
    """The results of all tables in sentences, and their rows, as JSON."""
    found = [
        {"table": x.name, "result": sentences(x, outcome), "reference": x.reference,
         "rows": list(map(_numbers, x.rows))}
        for x in comparisons
    ]  # fmt: skip
    content = plain({"metric": outcome.metric, "better": outcome.better, "tables": found})
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _numbers(compared: ComparedRow) -> dict[str, Any]:
    """Score, difference to the reference row and p-values of a row; null where undefined."""
    gap = compared.difference
    return {
        "row": compared.row.spec.label,
        "score": dataclasses.asdict(compared.score),
        "difference": dataclasses.asdict(gap) if gap else None,
        "test": compared.test,
        "p": compared.p,
        "p_holm": compared.p_holm,
        "dominated_by": list(compared.dominated_by),
        "runs": {seed: str(path.parent) for seed, path in compared.row.predictions.items()},
    }


def _write(path: Path, content: str | bytes) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
    return path


def _prefixes(names: Sequence[str]) -> list[str]:
    """A different prefix of file names for each table; empty if there is only one table."""
    prefixes: list[str] = []
    for name in without_common(names):
        plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:60]
        prefix = f"{plain}_" if plain else ""
        while prefix in prefixes:
            prefix = f"{prefix}{len(prefixes)}_"
        prefixes.append(prefix)
    return prefixes

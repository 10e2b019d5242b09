"""The report of an ablation: tables in three formats, figures in two, and one page of it all."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from finetune_jax.ablation import tables
from finetune_jax.ablation.extras import extras
from finetune_jax.ablation.figures import figures
from finetune_jax.ablation.layout import lay_out, without_common
from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.page import page
from finetune_jax.ablation.stage_map import stage_map
from finetune_jax.ablation.statistics import compare
from finetune_jax.errors import UserError
from finetune_jax.tables import table

_ON_TERMINAL = ("trained", "FLOPs/step", "marks")


def write_report(outcome: Outcome, folder: Path) -> list[Path]:
    """Writes ``index.html``, and for each table ``table.md``, ``.tex``, ``.csv`` and its figures.

    Where there are several tables, the names of their files begin with theirs. Figures are PNG and
    PDF. Each file is written whole or not at all; other files of the folder stay.

    Args:
      outcome: of the ablation.
      folder: made if it is not there.

    Returns:
      The files, those of a table together.

    Raises:
      UserError: the rows of a table cannot be compared, predictions are missing, or the folder
        cannot be written.
    """
    comparisons = compare(outcome)
    contents: dict[str, str | bytes] = {}
    parts = []
    for prefix, comparison in zip(_prefixes(list(outcome.tables)), comparisons, strict=True):
        further = extras([x.row for x in comparison.rows], outcome.metric)
        laid_out = lay_out(comparison, further, outcome)
        drawings = figures(comparison, further, outcome)
        contents[f"{prefix}table.md"] = tables.markdown(laid_out)
        contents[f"{prefix}table.tex"] = tables.latex(laid_out)
        contents[f"{prefix}table.csv"] = tables.csv_text(comparison, further, outcome)
        for drawing in drawings:
            contents[f"{prefix}{drawing.name}.png"] = drawing.png
            contents[f"{prefix}{drawing.name}.pdf"] = drawing.pdf
        parts.append((comparison, further, drawings))
    overall = [drawing for drawing in [stage_map(comparisons, outcome)] if drawing]
    for drawing in overall:
        contents[f"{drawing.name}.png"] = drawing.png
        contents[f"{drawing.name}.pdf"] = drawing.pdf
    contents["index.html"] = page(outcome, parts, overall)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(folder / name, content) for name, content in contents.items()]
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None


def terminal_tables(outcome: Outcome) -> str:
    """The tables for a terminal: score, difference and main costs of every row.

    Raises:
      UserError: the rows of a table cannot be compared.
    """
    parts = []
    for comparison in compare(outcome):
        whole = lay_out(comparison, [], outcome)
        columns = [i for i, name in enumerate(whole.header) if name in _ON_TERMINAL or i < 5]
        rows = [[row[i] for i in columns] for row in whole.rows]
        text = table([whole.header[i] for i in columns], rows, left=2)
        parts.append(f"{whole.title}\n{whole.caption}\n\n{text}")
    return "\n\n".join(parts)


def _write(path: Path, content: str | bytes) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
    return path


def _prefixes(names: Sequence[str]) -> list[str]:
    """Beginnings of file names, different for different tables; empty for one without a name."""
    found: list[str] = []
    for name in without_common(names):
        plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:60]
        prefix = f"{plain}_" if plain else ""
        while prefix in found:
            prefix = f"{prefix}{len(found)}_"
        found.append(prefix)
    return found

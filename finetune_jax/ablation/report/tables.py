"""Writes tables as Markdown and LaTeX, and the full numbers of a comparison as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.report.base import COSTS, ComparedRow, Comparison, ExtraColumn
from finetune_jax.ablation.report.layout import EDGE, Table, one_line


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown, with aligned columns so that the source is readable too."""
    cells = [[_markdown(c) for c in row] for row in (table.header, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            c.rjust(w) if i in table.numeric else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    separator = ["-" * (w - 1) + (":" if i in table.numeric else "-") for i, w in enumerate(widths)]
    lines = [line(cells[0]), f"| {' | '.join(separator)} |", *map(line, cells[1:])]
    notes = "\n".join(f"- {_paragraph(note)}" for note in table.notes)
    return (
        f"### {_markdown(table.title)}\n\n{_paragraph(table.result)}\n\n"
        + f"{_paragraph(table.caption)}\n\n"
        + "\n".join(lines)
        + f"\n\n{notes}\n"
    )


def latex(table: Table) -> str:
    """A LaTeX float for ``\\input``; needs the LaTeX packages booktabs and graphicx."""
    alignment = "".join("r" if i in table.numeric else "l" for i in range(len(table.header)))

    def line(row: Sequence[str]) -> str:
        cells = [
            _minus_signs(_latex(c)) if i in table.numeric else _latex(c) for i, c in enumerate(row)
        ]
        return " & ".join(cells) + r" \\"

    body = "\n".join(map(line, table.rows))
    notes = r" \\ ".join(map(_latex, table.notes))
    return (
        "% Needs \\usepackage{booktabs,graphicx}\n"
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_latex(table.caption)}}}\n"
        "\\resizebox{\\linewidth}{!}{%\n"
        f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{line(table.header)}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}}\n\n"
        f"\\smallskip\\parbox{{\\linewidth}}{{\\scriptsize\\raggedright {notes}}}\n"
        "\\end{table}\n"
    )


def csv_text(comparison: Comparison, extra: Sequence[ExtraColumn], outcome: Outcome) -> str:
    """Every number of a table in full precision, one line per row; undefined cells are empty."""
    records = [_record(x, comparison, extra, outcome) for x in comparison.rows]
    file = io.StringIO(newline="")
    names = dict.fromkeys(name for record in records for name in record)
    writer = csv.DictWriter(file, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: "" if _undefined(v) else v for k, v in record.items()})
    return file.getvalue()


def _markdown(text: str) -> str:
    """Text in which only the characters that Markdown would interpret are escaped.

    Characters that are plain text in their context stay as they are, because the source is also
    read in terminals: an underscore inside a word, a single bracket, ``<`` before a number, ``&``.
    """
    escaped = re.sub(r"[\\`*|~$#]|[\]](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])", r"\\\g<0>",
                     one_line(text))  # fmt: skip
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def _paragraph(text: str) -> str:
    """Escaped text whose first characters do not start a list, a rule or a quotation either."""
    return re.sub(r"^(\d*)([-+=>.)\[])", r"\1\\\2", _markdown(text))


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
        "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", '"': r"\string" + '"',
        **{c: f"\\{c}" for c in "{}$&#%_"},
        # LaTeX would read these as arguments of the end of the row before.
        "[": "{[}", "]": "{]}", "*": "{*}",
        "–": "--", EDGE: r"\textdagger{}",
    }
)  # fmt: skip


def _latex(text: str) -> str:
    """Text with escapes for LaTeX; some letters need a LaTeX engine or a font that has them."""
    # LaTeX would join two of these characters in a row into another character.
    return re.sub(r"([-,])(?=\1)", "\\1\0", one_line(text)).translate(_LATEX).replace("\0", "{}")


def _minus_signs(text: str) -> str:
    """Text with minus signs instead of hyphens before numbers, except in exponents."""
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _record(
    compared: ComparedRow,
    comparison: Comparison,
    extra: Sequence[ExtraColumn],
    outcome: Outcome,
) -> dict[str, Any]:
    """All values of a row by column name."""
    row, metric = compared.row, outcome.metric
    record: dict[str, Any] = {
        "table": row.spec.table,
        "row": row.spec.label,
        "overrides": json.dumps(row.spec.overrides),
        "failed": row.point is None or bool(row.errors and not row.test),
        "edges": " ".join(row.edges),
        "budget": row.budget,
        "trials": len(row.trials),
        "tuned_over": outcome.tuning_seeds,
        "metric": metric,
        "better": outcome.better,
        **{f"chosen.{key}": value for key, value in (row.point or {}).items()},
        **{f"score_{k}": v for k, v in vars(compared.score).items()},
        "n_scored": next((s["n_scored"] for s in row.test.values()), None),
        "reference": comparison.reference,
        "test": compared.test,
    }
    for name in ("value", "low", "high", "seeds", "covers"):
        record[f"difference_{name}"] = getattr(compared.difference, name, None)
    for name in ("p", "p_holm"):
        record[f"difference_{name}"] = getattr(compared, name)
    costs = vars(row.cost) if row.cost else {}
    record |= costs
    record["trainable_share"] = costs["trainable"] / costs["total"] if costs else None
    record |= {f"front_{cost}": cost in compared.front for cost in COSTS}
    record["dominated_by"] = json.dumps(compared.dominated_by)
    for split, scores in (("test", row.test), ("validation", row.validation)):
        record |= {f"{split}_{metric}_seed{s}": x.get(metric) for s, x in sorted(scores.items())}
    for column in extra:
        estimate = column.estimates[row.spec.name]
        record |= {f"{column.name} {k}": v for k, v in vars(estimate).items()}
    record["errors"] = json.dumps({str(k): v for k, v in row.errors.items()})
    return record

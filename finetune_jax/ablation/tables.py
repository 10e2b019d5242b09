"""A laid out table in Markdown and in LaTeX, and a comparison with every figure in full as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from finetune_jax.ablation.extras import Extra
from finetune_jax.ablation.layout import EDGE, Table, one_line
from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.statistics import COSTS, Compared, Comparison


def markdown(table: Table) -> str:
    """GitHub's Markdown; its columns are aligned for reading as it is, too."""
    cells = [[_markdown(c) for c in row] for row in (table.header, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            c.rjust(w) if i in table.numeric else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + (":" if i in table.numeric else "-") for i, w in enumerate(widths)]
    lines = [line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])]
    remarks = "\n".join(f"- {_paragraph(note)}" for note in table.notes)
    return (
        f"### {_markdown(table.title)}\n\n{_paragraph(table.caption)}\n\n"
        + "\n".join(lines)
        + f"\n\n{remarks}\n"
    )


def latex(table: Table) -> str:
    """A float for ``\\input``; needs the packages booktabs and graphicx."""
    form = "".join("r" if i in table.numeric else "l" for i in range(len(table.header)))

    def line(row: Sequence[str]) -> str:
        cells = [_signs(_latex(c)) if i in table.numeric else _latex(c) for i, c in enumerate(row)]
        return " & ".join(cells) + r" \\"

    body = "\n".join(map(line, table.rows))
    remarks = r" \\ ".join(map(_latex, table.notes))
    return (
        "% Needs \\usepackage{booktabs,graphicx}\n"
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_latex(table.caption)}}}\n"
        "\\resizebox{\\linewidth}{!}{%\n"
        f"\\begin{{tabular}}{{{form}}}\n\\toprule\n{line(table.header)}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}}\n\n"
        f"\\smallskip\\parbox{{\\linewidth}}{{\\scriptsize\\raggedright {remarks}}}\n"
        "\\end{table}\n"
    )


def csv_text(comparison: Comparison, further: Sequence[Extra], outcome: Outcome) -> str:
    """Every figure of a table in full precision, one line per row; empty where undefined."""
    records = [_record(x, comparison, further, outcome) for x in comparison.rows]
    file = io.StringIO(newline="")
    names = dict.fromkeys(name for record in records for name in record)
    writer = csv.DictWriter(file, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: "" if _undefined(v) else v for k, v in record.items()})
    return file.getvalue()


def _markdown(text: str) -> str:
    """Escaped, so that all of it is text, and no more than that: it is read in terminals, too.

    Alone, an underscore inside a word, a bracket, ``<`` before a number and ``&`` are text.
    """
    escaped = re.sub(r"[\\`*|~$#]|[\]](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])", r"\\\g<0>",
                     one_line(text))  # fmt: skip
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def _paragraph(text: str) -> str:
    """Escaped, also where its first characters would begin a list, a rule or a quotation."""
    return re.sub(r"^(\d*)([-+=>.)\[])", r"\1\\\2", _markdown(text))


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
        "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", '"': r"\string" + '"',
        **{c: f"\\{c}" for c in "{}$&#%_"},
        # After the end of a row these would be read as its arguments.
        "[": "{[}", "]": "{]}", "*": "{*}",
        "–": "--", EDGE: r"\textdagger{}",
    }
)  # fmt: skip


def _latex(text: str) -> str:
    """Escaped; other letters than LaTeX's own need an engine or a font that has them."""
    # Two of these in a row would become another sign.
    return re.sub(r"([-,])(?=\1)", "\\1\0", one_line(text)).translate(_LATEX).replace("\0", "{}")


def _signs(text: str) -> str:
    """Minus signs in place of hyphens, but in exponents."""
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _record(
    compared: Compared, comparison: Comparison, further: Sequence[Extra], outcome: Outcome
) -> dict[str, Any]:
    """All of a row by name of its column."""
    row, metric = compared.row, outcome.metric
    record: dict[str, Any] = {
        "table": row.line.table,
        "row": row.line.label,
        "overrides": json.dumps(row.line.overrides),
        "failed": row.point is None or bool(row.errors and not row.test),
        "edges": " ".join(row.edges),
        "budget": row.budget,
        "trials": len(row.trials),
        "tuned_over": outcome.tuned_over,
        "metric": metric,
        "better": outcome.better,
        **{f"chosen.{key}": value for key, value in (row.point or {}).items()},
        **{f"score_{k}": v for k, v in vars(compared.score).items()},
        "n_scored": next((s["n_scored"] for s in row.test.values()), None),
        "reference": comparison.reference,
        "test_over_examples": comparison.test,
    }
    names = ("value", "low", "high", "seeds", "p_seeds", "p_seeds_holm", "p_examples",
             "p_examples_holm")  # fmt: skip
    record |= {f"difference_{k}": getattr(compared.difference, k, None) for k in names}
    costs = vars(row.cost) if row.cost else {}
    record |= costs
    record["trainable_share"] = costs["trainable"] / costs["total"] if costs else None
    record |= {f"front_{cost}": cost in compared.front for cost in COSTS}
    record["dominated_by"] = json.dumps(compared.dominated_by)
    for split, scores in (("test", row.test), ("validation", row.validation)):
        record |= {f"{split}_{metric}_seed{s}": x.get(metric) for s, x in sorted(scores.items())}
    for extra in further:
        found = extra.estimates[row.line.name]
        record |= {f"{extra.name} {k}": v for k, v in vars(found).items()}
    record["errors"] = json.dumps({str(k): v for k, v in row.errors.items()})
    return record

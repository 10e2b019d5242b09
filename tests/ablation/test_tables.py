"""Tables of an ablation contain every row, and Markdown and LaTeX show each label as it is."""

import csv
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from synthetic import HOSTILE, RATE, classified, make_outcome, make_row

from finetune_jax.ablation.report import tables
from finetune_jax.ablation.report.base import Estimate
from finetune_jax.ablation.report.layout import Table, interval, lay_out, one_line
from finetune_jax.ablation.report.statistics import compare

property_test = settings(max_examples=150, deadline=None)
labels = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.text("\\|`*_[]()<>&$#%{}~^'\"!-+.=,:;@ \n\taZ0", max_size=24),
)


def table_of(label, numeric="0.9 [0.8, 1.0]"):
    rows = ((label, "x", numeric), ("plain", label, numeric))
    header = ("row", label, "score")
    return Table(label, label, label, header, frozenset({2}), rows, (label, f"note {label}"))


def markdown_cells(text):
    """Cells by row as a Markdown renderer reads them; fails if a cell is more than text."""
    from markdown_it import MarkdownIt

    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    rows = []
    for i, token in enumerate(parsed):
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special"}, (kinds, token.content)
            content = "".join(child.content for child in token.children)
            if parsed[i - 1].type in ("td_open", "th_open"):
                rows[-1].append(content)
            else:
                rows.append([content])
    return rows


@property_test
@given(labels)
@example(HOSTILE)
@example("[ ] a")
@example("[a]: /b")
@example("1. a")
@example("a #")
def test_markdown_shows_any_label_as_it_is(label):
    shown = one_line(label)
    rows = markdown_cells(tables.markdown(table_of(label)))
    assert [r for r in rows if len(r) == 3] == [
        ["row", shown, "score"], [shown, "x", "0.9 [0.8, 1.0]"], ["plain", shown, "0.9 [0.8, 1.0]"],
    ]  # fmt: skip
    if shown:  # the title, the result, the caption, and two notes
        assert [r[0] for r in rows if len(r) == 1] == [shown] * 4 + [f"note {shown}"]


SIGNS = {
    r"\textbackslash{}": "\\", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~",
    r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotesingle{}": "'",
    r"\textasciigrave{}": "`", r"\string" + '"': '"', r"\textdagger{}": "†", "{[}": "[", "{]}": "]",
    "{*}": "*", "-{}": "-", ",{}": ",", "--": "–", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&",
    r"\#": "#", r"\%": "%", r"\_": "_",
}  # fmt: skip


def read_latex(text):
    """The text that LaTeX would print; fails on a character that LaTeX would interpret."""
    out, at = "", 0
    while at < len(text):
        sign = next((s for s in SIGNS if text.startswith(s, at)), None)
        if sign is None:
            assert text[at] not in "\\{}$&#%_^~[]*`'\"<>|", text[at:]
        out += SIGNS[sign] if sign else text[at]
        at += len(sign or "x")
    return out


@property_test
@given(labels)
@example(HOSTILE)
@example("*a")
@example("[1pt]")
@example("--- ,,")
def test_latex_shows_any_label_as_it_is(label):
    text = tables.latex(table_of(label))
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL)[1]
    lines = [line for line in body.split("\n") if line and line != r"\midrule"]
    assert len(lines) == 3 and all(line.endswith(r" \\") for line in lines)
    cells = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines]
    shown = one_line(label)
    assert [[read_latex(c) for c in row] for row in cells] == [
        ["row", shown, "score"], [shown, "x", "0.9 [0.8, 1.0]"], ["plain", shown, "0.9 [0.8, 1.0]"],
    ]  # fmt: skip
    caption = re.search(r"\\caption\{(.*)\}\n", text)[1]
    assert read_latex(caption) == shown


def test_minus_signs_of_latex_are_minus_signs():
    text = tables.latex(table_of("a-1", "-0.1 [-0.2, 1e-05]"))
    assert "$-$0.1 {[}$-$0.2, 1e-05{]}" in text and "a-1 & x" in text


def test_the_table_compiles(written, tmp_path):
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("not run: needs pdflatex")
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
        f"\\input{{{written[0] / 'table.tex'}}}\n\\end{{document}}\n"
    )
    process = subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "page.log").read_text(errors="replace")


def test_no_row_is_dropped_and_marks_are_explained(written, outcome):
    folder, _ = written
    rows = [r for r in markdown_cells((folder / "table.md").read_text()) if len(r) > 1]
    assert [r[0] for r in rows[1:]] == [one_line(row.spec.label) for row in outcome.rows]
    by_label = {r[0]: dict(zip(rows[0], r, strict=True)) for r in rows[1:]}
    assert by_label["linear_probe"]["chosen"] == "learning_rate=0.1†"
    assert by_label["full"]["chosen"] == "learning_rate=0.1"
    assert by_label["full"]["difference, points"] == "reference"
    assert by_label["lost"]["accuracy, %"] == "failed" and by_label["lost"]["trained"] == "–"
    assert by_label["half"]["accuracy, %"].endswith("(2 of 3 seeds)")
    assert by_label["full"]["trained"] == "5 M (50 %)"
    assert by_label["linear_probe"]["FLOPs/step"] == "0"
    assert by_label["full"]["accuracy, cifar10_1, %"] == "not run"
    assert by_label["full"]["relative feature drift"] == "0.2500 [0.2500, 0.2500]"
    # Corrupted 0.8, 0.81, 0.82: standard error 0.01 / sqrt(3), t quantile 4.3027.
    # The effective number of examples is 0.81 * 0.19 * 3 / 0.0001, and Wilson's interval of it:
    assert by_label["full"]["accuracy, corrupted, %"] == "81.0 [78.4, 83.4]"
    assert "P F" in by_label["linear_probe"]["marks"]
    text = (folder / "table.md").read_text()
    for said in ("†: the smallest or the largest value tried",
                 "half: failed with seed 1: loss is nan at step 7",
                 "lost: failed: every point", "cifar10_1: not run, needs CIFAR-10.1",
                 "budget of every row: 2 runs", "on 200 examples", "over seeds 0, 1, 2",
                 "Differences are to full", "random-effects test over seeds and examples",
                 "After Holm's adjustment"):  # fmt: skip
        assert said in text, said


def test_dominated_rows_are_marked_and_the_better_one_is_named(tmp_path):
    rows = [make_row(tmp_path, name, {0: classified(np.arange(100) < right)})
            for name, right in (("good", 90), ("poor", 50))]  # fmt: skip
    outcome = make_outcome(rows, seeds=(0,))
    (comparison,) = compare(outcome)
    table = lay_out(comparison, [], outcome)
    assert [row[-1] for row in table.rows] == ["P F", "D"]
    assert "poor: dominated by good." in table.notes
    assert "seed 0 [95 % interval over examples]" in table.caption
    # Wilson's interval of 90 of 100.
    assert table.rows[0][2] == "90.0 [82.6, 94.5]"


def test_the_csv_has_every_figure_in_full(written, outcome):
    rows = list(csv.DictReader(io.StringIO((written[0] / "table.csv").read_text())))
    assert [r["row"] for r in rows] == [row.spec.label for row in outcome.rows]
    (comparison,) = compare(outcome)
    for found, compared in zip(rows, comparison.rows, strict=True):
        row = compared.row
        if row.cost is None:
            assert found["failed"] == "True" and found["trainable"] == found["score_value"] == ""
            continue
        assert float(found["score_value"]) == compared.score.value
        assert float(found["score_low"]) == compared.score.low
        for name, value in vars(row.cost).items():
            assert float(found[name]) == value
        for seed, scores in row.test.items():
            assert float(found[f"test_accuracy_seed{seed}"]) == scores["accuracy"]
        if compared.difference:
            p_values = {k: v for k, v in vars(compared).items() if k.startswith("p_")}
            p_values["p"] = compared.p
            assert len(p_values) == 2 and found["test"] == compared.test
            for name, value in {**vars(compared.difference), **p_values}.items():
                cell = found[f"difference_{name}"]
                if name == "covers":
                    assert cell == value
                    continue
                assert (cell == "") if math.isnan(value) else float(cell) == value
        assert json.loads(found["overrides"]) == row.spec.overrides
        assert float(found[f"chosen.{RATE}"]) == row.point[RATE]
    assert rows[1]["edges"] == RATE
    assert json.loads(rows[3]["errors"]) == {"1": "loss is nan\nat step 7"}
    assert float(rows[0]["accuracy, corrupted value"]) == pytest.approx(0.81)


def test_intervals_for_people():
    nan = math.nan
    assert interval(Estimate(0.5, 0.25, 0.75, 3), "accuracy") == "50.0 [25.0, 75.0]"
    assert (
        interval(Estimate(0.02, -0.0004, 0.04, 3), "kappa", sign=True)
        == "+0.0200 [-0.0004, +0.0400]"
    )
    assert interval(Estimate(0.5, nan, nan, 1), "rmse") == "0.5000" and interval(
        Estimate(nan, nan, nan, 0), "accuracy"
    ) == "–"  # fmt: skip
    assert interval(Estimate(2e-7, 1e-7, 3e-7, 3), "loss") == "2e-07 [1e-07, 3e-07]"

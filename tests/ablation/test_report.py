"""The report of an ablation: nothing dropped, nothing misread by Markdown, LaTeX or a browser."""

import csv
import dataclasses
import html
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
from made import RATE, classified, cost, made_outcome, made_row, regressed, rights

from finetune_jax.ablation import sensitivity, tables
from finetune_jax.ablation.drawing import drawn, label_beside
from finetune_jax.ablation.extras import extras
from finetune_jax.ablation.figures import figures
from finetune_jax.ablation.layout import Table, interval, lay_out, one_line
from finetune_jax.ablation.report import write_report
from finetune_jax.ablation.search import Trial
from finetune_jax.ablation.stage_map import stage_map, stage_scores
from finetune_jax.ablation.statistics import Estimate, compare
from finetune_jax.errors import UserError

property_test = settings(max_examples=150, deadline=None)
HOSTILE = "a|b_c*d*`e`<script>f</script>[g](h)&amp;~i~ \\ {j}$k$#%^'\"--\n\tl"
labels = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.text("\\|`*_[]()<>&$#%{}~^'\"!-+.=,:;@ \n\taZ0", max_size=24),
)


def table_of(label, numeric="0.9 [0.8, 1.0]"):
    rows = ((label, "x", numeric), ("plain", label, numeric))
    header = ("row", label, "score")
    return Table(label, label, header, frozenset({2}), rows, (label, f"note {label}"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Rows of every kind: with extras, with a hostile name, on an edge, half failed, all failed."""
    folder = tmp_path_factory.mktemp("outcome")

    def others(level):
        shift = {"accuracy": level - 0.2, "accuracy_low": 0.1, "accuracy_high": 0.9}
        return {
            "corruptions": {
                s: {"metric": "accuracy", "mean": {"fog": level - 0.1 + 0.01 * s, "spatter": 0.1},
                    "mean_corrupted": level - 0.1 + 0.01 * s, "main": ["fog"]}
                for s in range(3)
            },
            "shifts": {s: {"cifar10_1": {"not_run": "needs CIFAR-10.1"}, "far": shift}
                       for s in range(3)},
            "drift": {s: {"feature_drift_relative": 0.25} for s in range(3)},
        }  # fmt: skip

    tried = (Trial({RATE: 0.01}, 1 / 3, 0.4), Trial({RATE: 0.1}, 1.0, 0.8),
             Trial({RATE: 1.0}, 1.0, None), Trial({RATE: 0.01}, 1.0, 0.7))  # fmt: skip
    rows = [
        made_row(folder, "full", rights(0.9), cost=cost(5_000_000, 2e9), others=others(0.9)),
        made_row(folder, "linear_probe", rights(0.6, start=9), cost=cost(650, 0.0),
                 others=others(0.6), trials=tried, edges=(RATE,)),
        made_row(folder, HOSTILE, rights(0.55, start=20), cost=cost(800, 10.0)),
        made_row(folder, "half", rights(0.7, seeds=(0, 2)), errors={1: "loss is nan\nat step 7"}),
        made_row(folder, "lost", {}, failed=True, trials=(Trial({RATE: 0.1}, 1.0, None),)),
    ]  # fmt: skip
    return made_outcome(rows)


@pytest.fixture(scope="module")
def written(outcome, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "report"
    return folder, write_report(outcome, folder)


def test_every_format_is_there_whole(written):
    folder, paths = written
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in paths)
    drawings = ["cost_step_flops", "cost_trainable", "shift_0", "shift_2", "tuned_0"]
    assert names == sorted(
        ["index.html", "table.csv", "table.md", "table.tex"]
        + [f"{d}.{ending}" for d in drawings for ending in ("pdf", "png")]
    )
    for path in paths:
        start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".html": b"<!DOCTYPE"}.get(path.suffix, b"")
        assert path.read_bytes().startswith(start) and path.stat().st_size > 500


def test_a_report_is_the_same_every_time(written, outcome, tmp_path):
    for path in write_report(outcome, tmp_path):
        assert path.read_bytes() == (written[0] / path.name).read_bytes(), path.name


def markdown_cells(text):
    """Cells by row, as a Markdown renderer reads them: it finds nothing but text."""
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
    if shown:  # the title, the caption, and two notes
        assert [r[0] for r in rows if len(r) == 1] == [shown, shown, shown, f"note {shown}"]


SIGNS = {
    r"\textbackslash{}": "\\", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~",
    r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotesingle{}": "'",
    r"\textasciigrave{}": "`", r"\string" + '"': '"', r"\textdagger{}": "†", "{[}": "[", "{]}": "]",
    "{*}": "*", "-{}": "-", ",{}": ",", "--": "–", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&",
    r"\#": "#", r"\%": "%", r"\_": "_",
}  # fmt: skip


def read_latex(text):
    """What LaTeX would print; fails on a sign that would be a command."""
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
    assert [r[0] for r in rows[1:]] == [one_line(row.line.label) for row in outcome.rows]
    by_label = {r[0]: dict(zip(rows[0], r, strict=True)) for r in rows[1:]}
    assert by_label["linear_probe"]["chosen"] == "learning_rate=0.1†"
    assert by_label["full"]["chosen"] == "learning_rate=0.1"
    assert by_label["full"]["difference"] == "reference"
    assert by_label["lost"]["accuracy"] == "failed" and by_label["lost"]["trained"] == "–"
    assert by_label["half"]["accuracy"].endswith("(2 of 3 seeds)")
    assert by_label["full"]["trained"] == "5 M (50 %)"
    assert by_label["linear_probe"]["FLOPs/step"] == "0"
    assert by_label["full"]["accuracy, cifar10_1"] == "not run"
    assert by_label["full"]["relative feature drift"] == "0.2500 [0.2500, 0.2500]"
    # Corrupted 0.8, 0.81, 0.82: 0.81 and 4.3027 times 0.01 / sqrt(3).
    assert by_label["full"]["accuracy, corrupted"] == "0.8100 [0.7852, 0.8348]"
    assert "P F" in by_label["linear_probe"]["marks"]
    text = (folder / "table.md").read_text()
    for said in ("†: an end of the values tried", "half: failed with seed 1: loss is nan at step 7",
                 "lost: failed: every point", "cifar10_1: not run, needs CIFAR-10.1",
                 "budget of every row: 2 runs", "on 200 examples", "over seeds 0, 1, 2",
                 "Differences are to full", "McNemar's test", "after Holm"):  # fmt: skip
        assert said in text, said


def test_dominated_rows_are_marked_and_the_better_one_is_named(tmp_path):
    rows = [made_row(tmp_path, name, {0: classified(np.arange(100) < right)})
            for name, right in (("good", 90), ("poor", 50))]  # fmt: skip
    outcome = made_outcome(rows, seeds=(0,))
    (comparison,) = compare(outcome)
    table = lay_out(comparison, [], outcome)
    assert [row[-1] for row in table.rows] == ["P F", "D"]
    assert "poor: dominated by good." in table.notes
    assert "seed 0 [95 % interval over examples]" in table.caption
    # Wilson's interval of 90 of 100.
    assert table.rows[0][2] == "0.9000 [0.8256, 0.9448]"


def test_the_csv_has_every_figure_in_full(written, outcome):
    rows = list(csv.DictReader(io.StringIO((written[0] / "table.csv").read_text())))
    assert [r["row"] for r in rows] == [row.line.label for row in outcome.rows]
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
            for name, value in vars(compared.difference).items():
                cell = found[f"difference_{name}"]
                assert (cell == "") if math.isnan(value) else float(cell) == value
        assert json.loads(found["overrides"]) == row.line.overrides
        assert float(found[f"chosen.{RATE}"]) == row.point[RATE]
    assert rows[1]["edges"] == RATE
    assert json.loads(rows[3]["errors"]) == {"1": "loss is nan\nat step 7"}
    assert float(rows[0]["accuracy, corrupted value"]) == pytest.approx(0.81)


def test_intervals_for_people():
    nan = math.nan
    assert interval(Estimate(0.5, 0.25, 0.75, 3)) == "0.5000 [0.2500, 0.7500]"
    assert interval(Estimate(0.02, -0.0004, 0.04, 3), "+") == "+0.0200 [-0.0004, +0.0400]"
    assert interval(Estimate(0.5, nan, nan, 1)) == "0.5000" and interval(
        Estimate(nan, nan, nan, 0)
    ) == "–"  # fmt: skip
    assert interval(Estimate(2e-7, 1e-7, 3e-7, 3)) == "2e-07 [1e-07, 3e-07]"


def test_corruptions_outside_the_main_fifteen_are_averaged_where_there_are_no_others(tmp_path):
    found = {0: {"mean": {"spatter": 0.5, "saturate": 0.7}, "mean_corrupted": None, "main": []}}
    row = made_row(tmp_path, "a", rights(0.5, seeds=(0,)), others={"corruptions": found})
    (extra,) = extras([row], "accuracy")
    assert extra.estimates["a"].value == pytest.approx(0.6) and extra.shifted


def test_several_tables_have_files_of_their_own(tmp_path):
    rows = [made_row(tmp_path, label, rights(0.5, start=i), table=table)
            for table in ("folder:data/one", "folder:data/two/a", "folder:data/two:a")
            for i, label in enumerate("xy")]  # fmt: skip
    names = {p.name for p in write_report(made_outcome(rows), tmp_path / "report")}
    tables_found = sorted(name for name in names if name.endswith(".csv"))
    assert tables_found == ["one_table.csv", "two_a_2_table.csv", "two_a_table.csv"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(f"<h2>{name}</h2>" in page for name in {row.line.table for row in rows})


def test_where_it_cannot_write_it_says_so(outcome, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot write there"):
        write_report(outcome, tmp_path / "file")


points = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.5001, 0.51, 1.0]) | st.floats(0, 1)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=12, deadline=None)
@given(points)
def test_labels_do_not_overlap(places):
    with drawn("x", "x", 7, 4.0) as (grid, _):
        axes = grid[0, 0]
        axes.plot(*zip(*places, strict=True), "o")
        label_beside(axes, [(x, y, f"row {i}") for i, (x, y) in enumerate(places)])
        axes.figure.draw_without_rendering()
        # The text alone: an annotation's own box has its arrow in it.
        boxes = sorted(
            (super(type(t), t).get_window_extent() for t in axes.texts), key=lambda b: b.y0
        )
        right = axes.get_window_extent().x1
        assert len(boxes) == len(places)
        assert all(b.x0 > right and b.x1 <= axes.figure.bbox.x1 + 1 for b in boxes)
        assert all(one.y1 <= two.y0 + 0.5 for one, two in zip(boxes, boxes[1:], strict=False))


def test_what_is_tuned_is_shown_as_the_metric_itself(tmp_path):
    from matplotlib.figure import Figure

    tried = (Trial({RATE: 0.01}, 1.0, -3.0), Trial({RATE: 0.1}, 1.0, -2.0),
             Trial({RATE: 1.0}, 1.0, None), Trial({RATE: 0.01}, 0.5, -5.0))  # fmt: skip
    row = made_row(tmp_path, "a", {0: regressed(np.linspace(-1, 1, 20))}, trials=tried)
    axes = Figure().subplots()
    sensitivity._panel(axes, row, RATE, -1)
    drawn_as = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert [[0.01, 3], [0.1, 2]] in drawn_as.values()
    assert drawn_as["chosen"] == [[0.1, 2]] and drawn_as["failed"][0][0] == 1.0
    assert drawn_as["tried for a shorter run"] == [[0.01, 5]]


def test_figures_are_of_what_there_is(tmp_path, outcome):
    (comparison,) = compare(outcome)
    further = extras([x.row for x in comparison.rows], outcome.metric)
    names = [d.name for d in figures(comparison, further, outcome)]
    assert names == ["cost_trainable", "cost_step_flops", "tuned_0", "shift_0", "shift_2"]
    failed = [made_row(tmp_path, "lost", {}, failed=True, trials=(Trial({}, 1.0, None),))]
    bare = made_outcome(failed)
    assert figures(compare(bare)[0], [], bare) == []
    assert any(p.name == "index.html" for p in write_report(bare, tmp_path / "report"))


def surgical(folder, schemes, policies=("frozen",), sources=("",)):
    rows = [
        made_row(
            folder,
            f"{scheme}, batch_norm={policy}",
            rights(0.4 + 0.1 * i + 0.02 * j, start=10 * i + j),
            overrides={"scheme": scheme, "batch_norm": policy, "data.source": source},
            table=source,
        )
        for source in sources
        for i, scheme in enumerate(schemes)
        for j, policy in enumerate(policies)
        if (scheme, policy) != ("last_k(1)", "track")
    ]
    return made_outcome(rows)


def test_a_map_of_stages_needs_three_schemes_of_a_part(tmp_path):
    for schemes in (
        ["stages('stem')", "last_k(1)", "full", "head"],
        [f"lora(rank={k}) + last_k(1)" for k in (2, 4, 8)],
        ["stages('a') >> full", "last_k(1) >> full", "first_k(1) >> full", "lp_ft"],
    ):
        outcome = surgical(tmp_path, schemes)
        assert stage_map(compare(outcome), outcome) is None


def test_a_map_of_stages_is_of_schemes_by_what_else_varies(tmp_path):
    schemes = ["full", "stages('stem')", "first_k(2) + head", "last_k(1)", "norm_only"]
    outcome = surgical(tmp_path, schemes, ("frozen", "track"), ("x/fog", "x/snow"))
    comparisons = compare(outcome)
    found, columns, values = stage_scores(comparisons)
    assert found == schemes[:-1]
    assert columns == [f"{source}, batch_norm={policy}" for source in ("fog", "snow")
                       for policy in ("frozen", "track")]  # fmt: skip
    by_name = {x.row.line.name: x.score.value for c in comparisons for x in c.rows}
    assert values[1, 2] == by_name["x/snow: stages('stem'), batch_norm=frozen"]
    assert np.isnan(values).sum() == 2 and np.isnan(values[3, [1, 3]]).all()
    drawing = stage_map(comparisons, outcome)
    assert drawing.name == "stages" and drawing.png.startswith(b"\x89PNG")


def test_in_a_browser_the_page_sorts_and_fetches_nothing(written, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("not run: needs chromium")
    clicks = """<script>
      const heads = [...document.querySelectorAll("#s1 th button")];
      const name = (h) => h.textContent;
      const at = (text) => heads.findIndex((h) => name(h) === text);
      const column = (i) => [...document.querySelectorAll("#s1 tbody tr")].map(
        (row) => row.cells[i].textContent);
      const told = {heads: heads.map(name), before: column(0)};
      for (const text of ["accuracy", "trained scalars", "p, examples", "GFLOPs/step"]) {
        heads[at(text)].click(); told[text] = column(at(text)); told[text + " rows"] = column(0);
      }
      told.headings = [...document.querySelectorAll("h2")].map((h) => h.textContent);
      told.requests = performance.getEntriesByType("resource").map((r) => r.name)
        .filter((name) => !name.startsWith("data:"));
      told.wide = document.documentElement.scrollWidth - innerWidth;
      addEventListener("load", () => {
        told.images = document.images.length;
        told.broken = [...document.images].filter((i) => !i.complete || !i.naturalWidth).length;
        document.title = JSON.stringify(told);
      });
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text((written[0] / "index.html").read_text().replace("</body>", clicks))
    process = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
         path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", process.stdout, re.S)
    assert title, process.stderr[-2000:]
    told = json.loads(html.unescape(title[1]))
    assert told["before"] == ["full", "linear_probe", HOSTILE, "half", "lost"]
    scores = [float(x.split()[0]) for x in told["accuracy"][:-1]]
    assert scores == sorted(scores) and told["accuracy"][-1] == "failed"
    assert told["trained scalars"] == ["650", "800", "1,000", "5,000,000", "–"]
    assert told["trained scalars rows"][0] == "linear_probe"
    # A made row without a cost of its own takes 1e9 FLOPs a step.
    assert told["GFLOPs/step"] == ["0", "1e-08", "1", "2", "–"]
    assert sorted(told["p, examples rows"][-2:]) == ["full", "lost"]
    assert told["headings"] == ["Test accuracy", "Provenance"]
    assert told["images"] == 5 and told["broken"] == 0
    assert told["requests"] == [] and told["wide"] <= 0


def test_the_page_says_where_it_comes_from_and_takes_names_as_text(written):
    page = (written[0] / "index.html").read_text()
    assert "<script>f" not in page and "&lt;script&gt;f" in page
    for said in ("configs/made.py", "0123456789abcdef", "--workdir=DIR", "0.10.0", "2 runs",
                 "0, 1, 2", "61 s"):  # fmt: skip
        assert said in page, said
    assert "default-src 'none'" in page and not re.search(r"@import|url\(|<link|<iframe", page)


def test_an_outcome_about_which_little_is_known_has_a_page(tmp_path):
    outcome = dataclasses.replace(made_outcome([made_row(tmp_path, "a", rights(0.5))]), about={})
    assert "<h1>Ablation</h1>" in next(
        p.read_text() for p in write_report(outcome, tmp_path / "r") if p.suffix == ".html"
    )

"""The files of an ablation's report, and its page in a browser."""

import dataclasses
import re

import pytest
from browser import told_by
from synthetic import HOSTILE, make_outcome, make_row, rights

from finetune_jax.ablation.report import write
from finetune_jax.ablation.report.write import write_report
from finetune_jax.errors import UserError


def test_every_format_is_there_whole(written):
    folder, paths = written
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in paths)
    drawings = ["cost_step_flops", "cost_trainable", "shift_0", "shift_2", "tuned_0"]
    assert names == sorted(
        ["index.html", "summary.json", "table.csv", "table.md", "table.tex"]
        + [f"{d}.{ending}" for d in drawings for ending in ("pdf", "png")]
    )
    for path in paths:
        start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".html": b"<!DOCTYPE"}.get(path.suffix, b"")
        assert path.read_bytes().startswith(start) and path.stat().st_size > 500


@pytest.mark.slow
def test_a_report_is_the_same_every_time(written, outcome, tmp_path):
    for path in write_report(outcome, tmp_path):
        assert path.read_bytes() == (written[0] / path.name).read_bytes(), path.name


def test_several_tables_have_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "figures", lambda *_: [])
    rows = [make_row(tmp_path, label, rights(0.5, start=i), table=table)
            for table in ("folder:data/one", "folder:data/two/a", "folder:data/two:a")
            for i, label in enumerate("xy")]  # fmt: skip
    names = {p.name for p in write_report(make_outcome(rows), tmp_path / "report")}
    tables_found = sorted(name for name in names if name.endswith(".csv"))
    assert tables_found == ["one_table.csv", "two_a_2_table.csv", "two_a_table.csv"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(f"<h2>{name}</h2>" in page for name in {row.spec.table for row in rows})


def test_an_unwritable_folder_is_reported(outcome, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot write there"):
        write_report(outcome, tmp_path / "file")


def test_in_a_browser_the_page_sorts_and_fetches_nothing(written, tmp_path):
    script = """
      const heads = [...document.querySelectorAll("#s1 th button")];
      const name = (h) => h.textContent;
      const at = (text) => heads.findIndex((h) => name(h) === text);
      const column = (i) => [...document.querySelectorAll("#s1 tbody tr")].map(
        (row) => row.cells[i].textContent);
      told.heads = heads.map(name); told.before = column(0);
      for (const text of ["accuracy, %", "trained scalars", "p", "GFLOPs/step"]) {
        heads[at(text)].click(); told[text] = column(at(text)); told[text + " rows"] = column(0);
      }
      told.headings = [...document.querySelectorAll("h2")].map((h) => h.textContent);
    """
    told = told_by((written[0] / "index.html").read_text(), script, tmp_path)
    assert told["before"] == ["full", "linear_probe", HOSTILE, "half", "lost"]
    scores = [float(x.split()[0]) for x in told["accuracy, %"][:-1]]
    assert scores == sorted(scores) and told["accuracy, %"][-1] == "failed"
    assert told["trained scalars"] == ["650", "800", "1,000", "5,000,000", "–"]
    assert told["trained scalars rows"][0] == "linear_probe"
    # A synthetic row without an explicit cost takes 1e9 FLOPs per step.
    assert told["GFLOPs/step"] == ["0", "0.00000001", "1", "2", "–"]
    assert sorted(told["p rows"][-2:]) == ["full", "lost"]
    assert told["headings"] == ["Test accuracy", "Provenance"]
    assert told["figures"] == 5 and told["broken"] == 0
    assert told["requests"] == [] and told["wide"] <= 0


def test_the_page_says_where_it_comes_from_and_takes_names_as_text(written):
    page = (written[0] / "index.html").read_text()
    assert "<script>f" not in page and "&lt;script&gt;f" in page
    for said in ("configs/synthetic.py", "0123456789abcdef", "--workdir=DIR", "0.10.0", "2 runs",
                 "0, 1, 2", "61 s"):  # fmt: skip
        assert said in page, said
    assert "default-src 'none'" in page and not re.search(r"@import|url\((?!#)|<link|<iframe", page)


def test_an_outcome_with_few_facts_has_a_page(tmp_path):
    outcome = dataclasses.replace(
        make_outcome([make_row(tmp_path, "a", rights(0.5))]), provenance={}
    )
    assert "<h1>Ablation</h1>" in next(
        p.read_text() for p in write_report(outcome, tmp_path / "r") if p.suffix == ".html"
    )

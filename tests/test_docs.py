"""The documentation: named files exist, examples are tested code, and the notebook runs."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

EXAMPLE = ROOT / "tests" / "example_package" / "example_package"
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_tests_that_a_page_names_exist(page):
    text = page.read_text()
    pattern = r"`((?:finetune_jax|tests|docs|configs|experiments)/[\w/.-]+?)(?:::(\w+))?`"
    for name, test in re.findall(pattern, text):
        if re.search("FAMILY|NAME", name):
            name = str(Path(name).parent)
        assert (ROOT / name).exists(), name
        assert not test or f"def {test}(" in (ROOT / name).read_text(), test


def _bare(node: ast.AST) -> ast.AST:
    """The node without docstrings and annotations."""
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            first = child.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                del child.body[0]
        if isinstance(child, ast.FunctionDef):
            child.returns = None
            child.body = [n for n in child.body if not isinstance(n, ast.Delete)]
        if isinstance(child, ast.arg):
            child.annotation = None
    return node


def _definitions(source: str) -> dict[str, str]:
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ast.dump(_bare(node))
        elif isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = ast.dump(node)
    return found


def test_examples_are_those_of_the_example_package():
    real: dict[str, str] = {}
    for file in EXAMPLE.glob("*.py"):
        real |= _definitions(file.read_text())
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
    shown = [item for block in blocks for item in _definitions(block).items()]
    assert {name for name, _ in shown} == {"top", "TinyNet", "NAMES", "hinge", "Grading"}
    for name, code in shown:
        assert code == real[name], name


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_broken_links_are_found(tmp_path):
    pytest.importorskip("pdoc", reason="not run: needs the extra docs")
    (tmp_path / "a.html").write_text('<a href="b.html#x">1</a> <a href="#no">2</a> <img src="c">')
    (tmp_path / "b.html").write_text('<p id="x"><a href="https://example.com/no">3</a>')
    assert _load("build").broken_links(tmp_path) == ["a.html: #no", "a.html: c"]


@pytest.mark.slow
def test_the_pages_are_built_without_a_broken_link(tmp_path):
    pytest.importorskip("pdoc", reason="not run: needs the extra docs")
    code = "import build, sys; from pathlib import Path; print(build.build(Path(sys.argv[1])))"
    process = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pdoc", "-c", code, str(tmp_path / "site")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'docs'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.stdout.strip().endswith("[]"), process.stdout + process.stderr
    page = (tmp_path / "site" / "api" / "finetune_jax.html").read_text()
    assert 'id="open_setup"' in page and 'id="Artifact.predict"' in page


def test_a_notebook_keeps_what_its_cells_print_and_return():
    cells = ["x = 1\nprint('one')", "x + 1", "y = x"]
    notebook = {"cells": [{"cell_type": "code", "source": [cell]} for cell in cells]}
    found = [cell["outputs"] for cell in _load("notebook").execute(notebook)["cells"]]
    assert found[0][0]["text"] == ["one\n"] and found[2] == []
    assert found[1][0]["data"] == {"text/plain": ["2"]}


def test_the_notebook_was_executed():
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert sum(bool(cell["outputs"]) for cell in cells) >= 6


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    output = tmp_path / "executed.ipynb"
    command = [sys.executable, ROOT / "docs" / "notebook.py", ROOT / "docs" / "tutorial.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [*command, output], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    text = output.read_text()
    accuracies = re.findall(r"test accuracy (\d\.\d+)", text)
    assert len(accuracies) == 2 and float(accuracies[1]) > 0.9

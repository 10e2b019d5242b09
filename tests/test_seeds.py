"""The seeds of tests are printed, can be set, and determine the draws of random tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

DRAW = """
from hypothesis import given, settings, strategies as st

def test_rng(rng):
    print("drawn", rng.integers(2**40))

@settings(max_examples=2, database=None)
@given(st.integers(0, 2**40))
def test_hypothesis(value):
    print("drawn", value)
"""


def drawn(folder: Path, *options: str) -> tuple[str, list[str]]:
    """The line of seeds that pytest prints, and what two tests draw."""
    (folder / "test_draw.py").write_text(DRAW)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "test_draw.py"]
    process = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), "--rootdir=.", "-p", "conftest", *options],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    (header,) = [line for line in lines if line.startswith("seeds: ")]
    return header, [line.split()[-1] for line in lines if "drawn" in line]


@pytest.mark.slow
def test_seeds_are_printed_and_decide_what_is_drawn(tmp_path):
    header, numbers = drawn(tmp_path, "--seed=7")
    assert header == "seeds: --seed=7 --hypothesis-seed=7" and len(numbers) == 3
    assert drawn(tmp_path, "--seed=7") == (header, numbers)
    other_header, others = drawn(tmp_path)
    assert other_header == "seeds: --seed=0 --hypothesis-seed=0"
    assert numbers[0] != others[0] and numbers[1:] != others[1:]

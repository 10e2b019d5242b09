"""Reproductions are complete, verdicts follow from figures, and the list is up to date."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import __main__ as listing
from experiments.reproduction import (
    Measured,
    NotRun,
    Reproduction,
    Target,
    machine,
    overall,
    record,
    verdict,
)

REPRODUCTIONS, _ = listing.scripts()


@pytest.mark.parametrize("one", REPRODUCTIONS, ids=lambda one: one.name)
def test_every_reproduction_says_what_it_must(one):
    module = importlib.import_module(f"experiments.{one.name}")
    run = "experiments run " if hasattr(module, "TABLE") else "experiments."
    assert one.targets and one.command.startswith(f"python -m {run}{one.name}")
    assert len({target.name for target in one.targets}) == len(one.targets)
    for field in ("paper", "claim", "hazards", "hardware", "needs"):
        assert getattr(one, field), field
    for word in ("Hazards:", "Hardware:", "Command"):
        assert word in module.__doc__
    assert one.command in module.__doc__
    assert not one.config or Path(one.config).is_file()
    for target in one.targets:
        assert target.source or not one.config, target.name
        assert target.unit.startswith(("%", "of", "points")), target.name
        assert target.tolerance >= 0 if target.kind == "within" else not target.tolerance


def test_listing_imports_no_jax():
    script = (
        "import sys; from experiments import __main__ as m; m.readme(); "
        "assert not {'jax', 'tensorflow', 'matplotlib'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_list_is_up_to_date():
    assert (listing.FOLDER / "README.md").read_text() == listing.readme(), (
        "run python -m experiments --write"
    )


@given(st.floats(-100, 100), st.floats(0, 10), st.floats(-120, 120))
def test_within_means_within(value, tolerance, measured):
    target = Target("t", value, "within", tolerance)
    good = verdict(target, Measured(measured)) == "reproduced"
    gap = abs(value - measured)
    if abs(gap - tolerance) > 1e-6:
        assert good == (gap < tolerance)


def test_a_direction_needs_the_whole_interval():
    above, below = Target("t", 0.0, "above"), Target("t", 0.0, "below")
    assert verdict(above, Measured(1.0, 0.1, 2.0)) == "reproduced"
    assert verdict(above, Measured(1.0, -0.1, 2.0)) == "not reproduced"
    assert verdict(above, Measured(1.0)) == "not reproduced", "without an interval nothing is sure"
    assert verdict(below, Measured(-1.0, -2.0, -0.1)) == "reproduced"
    assert verdict(below, Measured(1.0, 0.1, 2.0)) == "not reproduced"
    assert verdict(above, NotRun("a pod")) == "not run (needs a pod)"


def test_an_overall_verdict_counts():
    assert overall(["reproduced"] * 2) == "reproduced"
    assert overall(["not reproduced", "not run (needs x)"]) == "not reproduced; 1 not run"
    assert overall(["reproduced", "not reproduced"]) == "partly reproduced (1 of 2 targets)"
    assert overall(["not run (needs x)"] * 2) == "not run (needs x)"


def test_a_record_holds_figure_verdict_and_origin(tmp_path):
    one = Reproduction(
        "n", "paper", "claim", (Target("a", 8.27, "within", 0.005, source="s"), Target("b", 1.0)),
        "hardware", "hazards", "command",
    )  # fmt: skip
    provenance = {"config_hash": "abc", "versions": {"jax": "1"}, "seconds": 3.0}
    found = {"a": Measured(8.27, 7.7, 8.9, 10_000), "b": NotRun("a pod")}
    text = record(one, found, provenance, "more", tmp_path).read_text()
    for part in ("8.27 [7.7, 8.9]", "10,000", "not run (needs a pod)", "abc", "jax 1", "more"):
        assert part in text
    assert "```\ncommand\n```" in text
    assert f"3 s on {machine()}" in text, "what it ran on, not what it would take"
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["verdict"] == "reproduced; 1 not run"
    assert [row["verdict"] for row in kept["rows"]] == ["reproduced", "not run (needs a pod)"]
    assert kept["rows"][0]["found"]["value"] == 8.27 and kept["config_hash"] == "abc"
    with pytest.raises(ValueError, match="expected figures"):
        record(one, {"a": found["a"]}, provenance, folder=tmp_path)


def test_a_record_says_the_command_that_was_run_and_stays_a_table(tmp_path):
    one = Reproduction(
        "n", "paper", "claim", (Target("a|b", 1.0, "within", 0.1, source="s"),), "hardware",
        "hazards", "command", config="configs/quickstart.py",
    )  # fmt: skip
    provenance = {
        "config_hash": {"x": "abc"}, "versions": {}, "seconds": 0.0, "command": "command --seeds=1",
    }  # fmt: skip
    text = record(one, {"a|b": NotRun("a | b\nand c")}, provenance, "", tmp_path).read_text()
    assert "```\ncommand --seeds=1\n```" in text
    assert "config configs/quickstart.py abc (x)" in text
    row = next(line for line in text.splitlines() if line.startswith("| a"))
    assert row.replace("\\|", "").count("|") == 7 and "and c" in row


def test_the_machine_is_named_by_its_cores_without_accelerators():
    assert machine() == f"{os.cpu_count()} CPU cores"

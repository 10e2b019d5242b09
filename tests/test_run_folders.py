"""A path that is no run is answered with the run around it or the runs below it."""

from __future__ import annotations

import pytest

from finetune_jax.artifact.schema import read_card
from finetune_jax.errors import UserError
from finetune_jax.evaluation.averaging import combine
from finetune_jax.evaluation.evaluator import read_config
from finetune_jax.run_folders import named_runs


@pytest.fixture
def runs(tmp_path):
    for name in ("soup_b", "soup_a"):
        for part in ("artifact/artifact.json", "checkpoints/3/x", "config.json", "plan.json"):
            file = tmp_path / "runs" / name / part
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    return tmp_path / "runs"


def test_the_folder_above_runs_names_them(runs):
    for read in (read_card, read_config):
        with pytest.raises(UserError, match="holds 2 runs: name one of them: soup_a, soup_b"):
            read(runs)


def test_the_folder_of_an_ablation_names_its_runs(tmp_path):
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(UserError, match=f"an ablation, whose runs are the folders in {tmp_path}/r"):
        read_config(tmp_path)


@pytest.mark.parametrize("part", ["artifact", "artifact/artifact.json", "checkpoints/3"])
def test_a_part_of_a_run_names_the_run(runs, part):
    with pytest.raises(UserError, match=f"the run of this path is {runs / 'soup_a'}$"):
        read_config(runs / "soup_a" / part)
    with pytest.raises(UserError, match=f"the run of this path is {runs / 'soup_b'}$"):
        combine([runs / "soup_b" / part, runs / "soup_a"], runs / "out")


def test_members_of_an_average_may_be_a_pattern(runs):
    assert named_runs([f"{runs}/soup_*"]) == [runs / "soup_a", runs / "soup_b"]
    assert named_runs(["x", "y"]) == [*map(type(runs), ("x", "y"))]
    (runs / "run [1]").mkdir()
    assert named_runs([f"{runs}/run [1]"]) == [runs / "run [1]"]
    with pytest.raises(UserError, match="no folder matches this pattern"):
        named_runs([f"{runs}/no*"])

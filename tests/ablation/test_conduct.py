"""An ablation runs no arm twice, scores on test once, and continues after a crash."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import ONE_DEVICE, ROOT

from finetune_jax.ablation.axes import over
from finetune_jax.ablation.conduct import Conductor
from finetune_jax.ablation.study import Study
from finetune_jax.ablation.worker import run_unit
from finetune_jax.cli import load_config
from finetune_jax.errors import UserError
from finetune_jax.files import SEAL

RATES = over("optimizer.learning_rate", [0.01, 0.1])


class Here:
    """A launcher that runs units in this process, records them, and can stop after some arms."""

    def __init__(self, stop_after=None):
        self.units, self.ended, self.stop_after = [], 0, stop_after

    def run(self, units, poll):
        def done():
            self.ended += 1
            if self.ended == self.stop_after:
                raise KeyboardInterrupt
            poll()

        for unit in units:
            self.units.append(json.loads(unit.read_text()))
            run_unit(unit, done)

    @property
    def trained(self):
        return [a["folder"] for u in self.units if u["what"] == "train" for a in u["arms"]]


def base(small_config):
    config = load_config(str(small_config))
    config.train.steps = 3
    config.eval.every_epochs = 100.0
    return config


def records(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row.get("cost", {}).pop("seconds", None)
        del row[SEAL]  # the digest is also over the seconds
    return {(row["key"], row["what"]): row for row in rows}


@pytest.fixture(scope="module")
def study():
    return Study(
        rows=over("scheme", ["linear_probe", "last_k(1)"]),
        tune=RATES,
        search="grid(extend=0)",
        seeds=(0, 1),
        tune_seeds=(0,),
    )


@pytest.fixture(scope="module")
def finished(small_config, study, tmp_path_factory):
    folder, launcher = tmp_path_factory.mktemp("ablation"), Here()
    outcome = Conductor(study, base(small_config), folder, launcher).run({})
    return folder, launcher, outcome


def test_rows_are_tuned_alike_and_test_is_touched_for_chosen_arms_only(finished):
    folder, launcher, outcome = finished
    kinds = [what.split()[0] for _, what in records(folder)]
    # 2 rows x 2 rates, then a second seed of each chosen point; 2 x 2 chosen arms are scored.
    assert kinds.count("trained") == 6 and kinds.count("scored") == 4
    assert len(set(launcher.trained)) == len(launcher.trained) == 6
    for unit in launcher.units:
        for arm in unit["arms"]:
            assert unit["what"] == "score" or arm["config"]["data"]["test"] == ""
    assert [row.budget for row in outcome.rows] == [2, 2]
    for row in outcome.rows:
        values = {t.point["optimizer.learning_rate"]: t.value for t in row.trials}
        assert values[row.point["optimizer.learning_rate"]] == max(values.values())
        assert set(row.test) == set(row.validation) == {0, 1}
        assert all(scores["n_scored"] == 50 for scores in row.test.values())
        assert row.cost.trainable < row.cost.total and row.cost.step_flops > 0
    assert list(outcome.rows[0].edges) == ["optimizer.learning_rate"]


def test_an_arm_is_the_run_of_its_config(finished, small_config, tmp_path):
    from finetune_jax.evaluation.evaluator import open_run
    from finetune_jax.setup import open_setup
    from finetune_jax.training.loop import train

    row = finished[2].rows[1]
    config = base(small_config)
    config.scheme = "last_k(1)"
    config.optimizer.learning_rate = row.point["optimizer.learning_rate"]
    alone = train(open_setup(config), tmp_path / "run")
    assert alone["validation"]["loss"] == pytest.approx(row.validation[0]["loss"], rel=1e-5)
    assert alone["test"]["accuracy"] == row.test[0]["accuracy"]
    evaluator = open_run(tmp_path / "run")
    observed = evaluator.observe("test")
    with np.load(row.predictions[0]) as kept:
        np.testing.assert_allclose(kept["observed/loss"], observed["loss"], rtol=1e-4, atol=1e-5)


def test_a_finished_ablation_runs_nothing(finished, small_config, study):
    folder, _, outcome = finished
    before = (folder / "results.jsonl").read_bytes()
    launcher = Here()
    again = Conductor(study, base(small_config), folder, launcher).run({})
    assert not launcher.units
    assert again.rows == outcome.rows
    assert (folder / "results.jsonl").read_bytes() == before


def test_a_changed_arm_runs_anew_and_the_others_do_not(finished, small_config, study, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    # Only one more seed of the chosen points is trained.
    launcher = Here()
    wider = dataclasses.replace(study, seeds=(0, 1, 2))
    Conductor(wider, base(small_config), folder, launcher).run({})
    seeds = [a["config"]["seed"] for u in launcher.units if u["what"] == "train" for a in u["arms"]]
    assert seeds == [2, 2] and len(records(folder)) == len(records(finished[0])) + 4


def test_another_score_specification_scores_the_recorded_arms(
    finished, small_config, study, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    config = base(small_config)
    config.data.test = "test[:30]"
    for line in range(2):
        launcher = Here()
        outcome = Conductor(study, config, folder, launcher).run({})
        assert not launcher.trained and len(launcher.units) == (0 if line else 2)
    assert all(s["n_scored"] == 30 for row in outcome.rows for s in row.test.values())
    for row in outcome.rows:
        with np.load(row.predictions[0]) as kept:
            assert len(kept["observed/loss"]) == 30
    # The first scores are still recorded for the first score specification.
    again = Conductor(study, base(small_config), folder, Here()).run({})
    assert [r.test for r in again.rows] == [r.test for r in finished[2].rows]


@pytest.mark.slow
def test_an_ablation_that_ends_after_any_arm_continues(finished, small_config, study, tmp_path):
    whole = records(finished[0])
    for stop_after in (1, 3, 3):
        with pytest.raises(KeyboardInterrupt):
            Conductor(study, base(small_config), tmp_path, Here(stop_after)).run({})
    launcher = Here()
    Conductor(study, base(small_config), tmp_path, launcher).run({})
    assert _alike(records(tmp_path), whole)


@pytest.mark.slow
def test_an_arm_that_diverges_is_kept_as_failed_and_not_chosen(small_config, tmp_path):
    study = Study(
        rows=over("scheme", ["last_k(1)"]),
        tune=over("optimizer.learning_rate", [0.01, 1e38]),
        search="grid(extend=0)",
        seeds=(0,),
    )
    row = Conductor(study, base(small_config), tmp_path, Here()).run({}).rows[0]
    assert row.point == {"optimizer.learning_rate": 0.01}
    assert [t.value is None for t in row.trials] == [False, True]
    failed = [r for r in records(tmp_path).values() if "error" in r]
    assert len(failed) == 1 and "loss is" in failed[0]["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": over("scheme", ["last_k(99)"])}, "last_k"),
        ({"tune": over("optimizer.learning_rat", [1.0])}, "learning_rate"),
        ({"search": "gird"}, "grid"),
        ({"rows": over("data.validation", [""])}, "data.validation is empty"),
        ({"rows": over("scheme", ["gradual"])}, "and the phases with a length take"),
        (
            {"rows": over("scheme", ["head", "last_k(1)", "stages('layer3_block0')"])},
            "freezes new leaves",
        ),
    ],
)
def test_impossible_studies_are_refused_before_anything_runs(
    small_config, tmp_path, changes, message
):
    study = Study(**{"rows": over("scheme", ["head"]), "tune": RATES, **changes})
    with pytest.raises(UserError, match=message):
        Conductor(study, base(small_config), tmp_path / "new", Here())
    assert not (tmp_path / "new").exists()


def _alike(found, expected):
    """Equal up to rounding: arms may have run in lockstep with other arms."""
    assert found.keys() == expected.keys()

    def compare(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(compare(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(compare, a, b))
        if isinstance(a, float) or isinstance(b, float):
            return a == pytest.approx(b, rel=1e-5, abs=1e-6)
        return a == b

    assert all(compare(found[key], expected[key]) for key in expected)
    return True


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_results(small_config, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        small_config.read_text()
        + """
from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study

def get_study():
    return Study(
        rows=over("scheme", ["linear_probe", "last_k(1)"]),
        tune=over("optimizer.learning_rate", [0.01, 0.1]),
        search="grid(extend=0)",
        seeds=(0, 1),
        tune_seeds=(0, 1),
    )
"""
    )

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_jax.ablate", f"--config={file}",
             f"--workdir={folder}"],
            cwd=ROOT, env={**os.environ, "XLA_FLAGS": ONE_DEVICE},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    began = time.monotonic()
    process = start(tmp_path / "whole")
    assert process.wait(300) == 0, process.stderr.read()
    seconds = time.monotonic() - began
    generator = random.Random(0)
    lines = []
    for _ in range(5):
        process = start(tmp_path / "cut")
        time.sleep(generator.uniform(0.3, 0.9) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        path = tmp_path / "cut" / "results.jsonl"
        lines.append(path.read_bytes().count(b"\n") if path.exists() else 0)
    process = start(tmp_path / "cut")
    assert process.wait(300) == 0, process.stderr.read()
    content = (tmp_path / "cut" / "results.jsonl").read_text().splitlines()
    assert len(content) == len(records(tmp_path / "cut")), "an arm is there twice"
    assert lines[-1] <= len(content) and _alike(
        records(tmp_path / "cut"), records(tmp_path / "whole")
    )

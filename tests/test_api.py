"""The Python API: the same results as the commands, with errors that name the bad value."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import finetune_jax as fj
from finetune_jax.errors import UserError
from finetune_jax.files import SEAL, read_json, require_seal, write_json
from finetune_jax.training.folder import finished_result

ROOT = Path(__file__).parent.parent


def test_every_name_is_there_and_documented():
    for name in fj.__all__:
        assert getattr(fj, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        fj.fitt  # noqa: B018


def test_import_is_quick_and_loads_no_jax():
    code = "import sys, finetune_jax; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_overrides_are_checked(small_config):
    config = fj.load_config(str(small_config), {"train.steps": 3, "scheme": "head"})
    assert (config.train.steps, config.scheme) == (3, "head")
    with pytest.raises(fj.UserError, match="no config key 'train.stepz'. Did you mean 'steps'"):
        fj.load_config(str(small_config), {"train.stepz": 3})
    with pytest.raises(fj.UserError, match="train.steps"):
        fj.load_config(str(small_config), {"train.steps": "many"})
    with pytest.raises(fj.UserError, match="'x' is below a value"):
        fj.load_config(str(small_config), {"train.steps.x": 1})


def test_fit_calls_back_for_every_line_of_the_metrics(small_config, tmp_path):
    config = fj.load_config(str(small_config), {"train.steps": 2, "log.every_steps": 1})
    lines = []
    result = fj.fit(
        fj.open_setup(config),
        tmp_path / "run",
        on_metrics=lambda step, split, metrics: lines.append((step, split, metrics)),
    )
    written = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [{"step": s, "split": p, **m} for s, p, m in lines] == written
    assert [(s, p) for s, p, _ in lines][:2] == [(1, "train"), (2, "train")]
    assert {p for _, p, _ in lines} == {"train", "validation", "test"}
    assert result == require_seal(read_json(tmp_path / "run/result.json"), "result.json")


def test_an_edited_result_of_a_finished_run_is_refused(short_run, tmp_path):
    shutil.copytree(short_run, tmp_path / "run")
    path = tmp_path / "run/result.json"
    expected = finished_result(tmp_path / "run")
    content = read_json(path)
    for edited in (
        {**content, "test": {**content["test"], "accuracy": 0.99}},
        {key: value for key, value in content.items() if key != SEAL},
    ):
        write_json(path, edited)
        with pytest.raises(UserError, match="the content was changed or is damaged"):
            finished_result(tmp_path / "run")
    # The result of an earlier version, without a checksum.
    kept = {key: value for key, value in content.items() if key not in (SEAL, "made_of")}
    write_json(path, kept)
    assert finished_result(tmp_path / "run") == {k: v for k, v in expected.items() if k in kept}


def test_score_and_predict_agree_with_the_run(short_run):
    scores = fj.score(short_run, "test")
    assert scores["accuracy"] == read_json(short_run / "result.json")["test"]["accuracy"]
    artifact = fj.Artifact.load(short_run)
    images = [np.full((8, 8, 3), 30 * i, np.uint8) for i in range(5)]
    alone = [artifact.predict([image])[0]["probabilities"] for image in images]
    together = [p["probabilities"] for p in artifact.predict(images, batch_size=2)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-5)


def test_plan_and_cost_need_no_data(small_config):
    setup = fj.open_setup(fj.load_config(str(small_config), {"scheme": "head"}))
    assert setup.plan.trainable == ("head/bias", "head/kernel")
    cost = fj.plan_cost(setup)
    assert cost["flops_step"] < 0.5 * cost["flops_step_full"]
    assert "frozen prefix" in fj.plan_table(setup)


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert len(code.splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**__import__("os").environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5

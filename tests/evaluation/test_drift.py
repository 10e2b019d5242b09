"""Drift of features and parameters from the weight file a run started from."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.evaluation.drift import Start, feature_drift, load_start, parameter_movement
from finetune_jax.evaluation.evaluator import open_run


@pytest.fixture(scope="module")
def evaluator(short_run):
    return open_run(short_run)


def test_frozen_stages_did_not_move_and_the_trained_one_did(evaluator):
    start = load_start(evaluator)
    rows = {row["stage"]: row for row in parameter_movement(evaluator, start)}
    assert list(rows) == list(evaluator.setup.model.stages)
    for stage, row in rows.items():
        if stage == "head":  # the config asks for a new head
            assert (row["leaves"], row["new"]) == (0, 2)
        else:
            assert (row["moved"] > 0) == (stage == "layer3_block0")
            assert row["relative"] == pytest.approx(row["moved"] / row["norm"])
    now = tree.flatten(evaluator.variables["params"]["layer3_block0"])
    then = tree.flatten(start.variables["params"]["layer3_block0"])
    squares = sum(float(((np.asarray(now[p]) - np.asarray(then[p])) ** 2).sum()) for p in now)
    assert rows["layer3_block0"]["moved"] == pytest.approx(squares**0.5, rel=1e-5)


def test_features_moved_by_what_is_measured_one_by_one(evaluator):
    start = load_start(evaluator)
    found = feature_drift(evaluator, start, "test")
    ours, labels = evaluator.features("test")
    batch = {"image": np.stack([evaluator.encode(x)["image"] for x in evaluator.examples("test")])}
    forward = jax.jit(lambda v, x: evaluator.setup.model.apply(v, x, stop="head"))
    theirs = np.asarray(forward(start.variables, evaluator.preprocess.device(batch)))
    gaps, norms = np.linalg.norm(ours - theirs, axis=1), np.linalg.norm(theirs, axis=1)
    assert found["feature_norm_base"] == pytest.approx(norms.mean(), rel=1e-4)
    assert found["feature_drift"] == pytest.approx(gaps.mean(), rel=1e-4)
    assert found["feature_drift_relative"] == pytest.approx((gaps / norms).mean(), rel=1e-4)
    assert len(labels) == 50


def test_movement_is_counted_by_stage_over_leaves_with_a_start():
    then = {"stem": {"k": np.array([3.0, 4.0]), "b": np.zeros(1)}, "head": {"k": np.ones(2)}}
    now = {
        "stem": {"k": np.array([3.0, 1.0]), "b": np.array([4.0]), "lora_a": np.ones(3)},
        "head": {"k": np.zeros(2)},
        "norm": {"s": np.ones(2)},
    }
    model = SimpleNamespace(stages=("stem", "norm", "head"))
    evaluator = SimpleNamespace(
        model=model, setup=SimpleNamespace(model=model), variables={"params": now}
    )
    loaded = frozenset(("params/stem/k", "params/stem/b", "params/norm/s"))
    start = Start({"params": {**then, "norm": {"s": np.zeros(2)}}}, loaded)
    stem, norm, head = parameter_movement(evaluator, start)
    assert stem == {
        "stage": "stem", "leaves": 2, "norm": 5.0, "moved": 5.0, "relative": 1.0,
        "new": 0, "beside": 1,
    }  # fmt: skip
    assert norm["moved"] == pytest.approx(2**0.5) and np.isnan(norm["relative"])
    assert (head["leaves"], head["new"], head["moved"]) == (0, 1, 0.0)


def test_another_base_is_refused(evaluator, tmp_path, weights):
    from finetune_jax.pretrained import save_native

    other = jax.tree.map(lambda x: np.asarray(x) + 1, load_start(evaluator).variables)
    save_native(tmp_path / "other.safetensors", other, {})
    with pytest.raises(UserError, match="is not the file that the run started from"):
        load_start(evaluator, str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="a weight file itself"):
        load_start(dataclasses.replace(evaluator, artifact=None))

"""The reaction of a run to a step that is not finite, by ``train.on_nan``."""

import json

import numpy as np
import pytest
from small_runs import config_of, losses, tensors

from finetune_jax import tree
from finetune_jax.config import completed, default, to_json
from finetune_jax.data import batches as batches_lib
from finetune_jax.errors import UserError
from finetune_jax.evaluation.scores import NonFinitePredictions
from finetune_jax.files import parse_json
from finetune_jax.setup import open_setup
from finetune_jax.training import checkpoint_integrity, checkpoints, preparing, train_phase
from finetune_jax.training import run as run_lib
from finetune_jax.training.arms import run_arms
from finetune_jax.training.kept_step import read_step
from finetune_jax.training.loop import train
from finetune_jax.training.metrics_writer import MetricsWriter
from finetune_jax.training.replaying import replay


@pytest.fixture
def poison(monkeypatch):
    """A set of numbers, from 0, of batches of the training order that are NaN."""
    original = batches_lib.TrainBatches.batch
    bad = set()

    def batch(self, step):
        found = original(self, step)
        if step in bad:
            found = {**found, "activation": np.full_like(found["activation"], np.nan)}
        return found

    monkeypatch.setattr(batches_lib.TrainBatches, "batch", batch)
    return bad


def setup_of(weights, **changes):
    return open_setup(config_of(weights, "head", **changes))


def test_stop_names_the_first_bad_step_and_keeps_batch_and_state(weights, tmp_path, poison):
    poison.update([3])
    setup = setup_of(weights, checkpoint__every_steps=2, log__every_steps=6, eval__every_epochs=9)
    with pytest.raises(UserError, match="at step 4") as error:
        train(setup, tmp_path / "run")
    message = str(error.value)
    kept = read_step(tmp_path / "run")
    assert kept.about["step"] == 4 and len(kept.about["indices"]) == 16
    assert "the loss is nan" in message and "head/" in message and "example " in message
    assert f"--workdir={tmp_path / 'run'} --step=4" in message
    assert np.isnan(kept.batch["activation"]).all()
    assert tree.first_nonfinite(kept.state) is None
    report = replay(tmp_path / "run")
    assert report["step"] == 4 and report["weights"] is None
    assert report["first_stage"] == "inputs" and np.isnan(report["losses"][0][0])
    assert report["losses"][0][1] in kept.about["examples"] and report["gradient"] == "head/bias"
    # The last good checkpoint is still there: without the bad batch, the run goes on from it.
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


@pytest.mark.slow
def test_a_run_whose_cause_is_gone_goes_on_to_the_same_bits(weights, tmp_path, poison):
    setup = setup_of(weights)
    train(setup, tmp_path / "whole")
    poison.add(3)
    with pytest.raises(UserError, match="at step 4"):
        train(setup, tmp_path / "run")
    poison.clear()
    train(setup, tmp_path / "run")
    for name, tensor in tensors(tmp_path / "whole").items():
        np.testing.assert_array_equal(tensors(tmp_path / "run")[name], tensor)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_skip_drops_the_update_of_a_bad_step_and_counts_it(weights, tmp_path, poison, accumulate):
    poison.update([2])
    changes = {"train__accumulate": accumulate, "optimizer__ema_decay": 0.9}
    setup = setup_of(weights, train__on_nan="skip", log__every_steps=6, **changes)
    result = train(setup, tmp_path / "run")
    assert result["nonfinite"] == {"policy": "skip", "skipped": [3], "left_out": []}
    found = tensors(tmp_path / "run")
    assert all(np.isfinite(x).all() for x in found.values())
    kept = read_step(tmp_path / "run")
    assert kept.about["step"] == 3 and not kept.state
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [x["skipped"] for x in lines if x["split"] == "train"] == [1]


@pytest.mark.slow
def test_a_finite_run_is_the_same_under_skip(weights, tmp_path):
    for policy in ("stop", "skip"):
        train(setup_of(weights, train__on_nan=policy), tmp_path / policy)
    for name, tensor in tensors(tmp_path / "stop").items():
        np.testing.assert_allclose(tensors(tmp_path / "skip")[name], tensor, atol=1e-6)


def test_skip_ends_after_too_many_steps_in_a_row(weights, tmp_path, poison):
    poison.update([1, 3, 4])
    setup = setup_of(weights, train__on_nan="skip", train__nan_limit=2)
    with pytest.raises(UserError, match="2 steps in a row .* at step 5"):
        train(setup, tmp_path / "run")
    kept = read_step(tmp_path / "run", 5)
    assert tree.first_nonfinite(kept.state) is None and "params/head/kernel" in kept.state
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["nan_limit"] == 2


@pytest.mark.slow
def test_back_up_leaves_out_the_batches_up_to_the_bad_one(weights, tmp_path, poison, monkeypatch):
    poison.update([3])
    changes = {"checkpoint__every_steps": 2, "eval__every_epochs": 9, "log__every_steps": 6}
    setup = setup_of(weights, train__on_nan="back_up", **changes)
    read = []
    original = batches_lib.TrainBatches.indices
    monkeypatch.setattr(
        batches_lib.TrainBatches, "indices", lambda self, i: (read.append(i), original(self, i))[1]
    )
    result = train(setup, tmp_path / "run")
    assert result["nonfinite"]["left_out"] == [[2, 2]]
    assert read[-4:] == [4, 5, 6, 7]  # batches of the steps 3 to 6
    assert len(losses(tmp_path / "run")) == 1
    assert read_step(tmp_path / "run").about["step"] == 4

    # Interrupted after the return, the run ends with the same bits.
    class Stop(Exception):
        pass

    def interrupt(step, split, metrics):
        if (step, split) == (6, "train"):
            raise Stop

    with pytest.raises(Stop):
        train(setup, tmp_path / "again", interrupt)
    poison.update([0, 1, 2])  # a run that continues must not read this file
    train(setup, tmp_path / "again")
    for name, tensor in tensors(tmp_path / "run").items():
        np.testing.assert_array_equal(tensors(tmp_path / "again")[name], tensor)


def test_back_up_ends_after_too_many_returns(weights, tmp_path, poison):
    poison.update(range(20))
    setup = setup_of(weights, train__on_nan="back_up", train__nan_limit=2)
    with pytest.raises(UserError, match="already gone back 2 times"):
        train(setup, tmp_path / "run")


def test_a_finite_divergence_stops(weights, tmp_path, capsys):
    setup = setup_of(weights, optimizer__learning_rate=1e9, optimizer__schedule="constant")
    with pytest.raises(UserError, match="a divergence: above 1e.06 times"):
        train(setup, tmp_path / "run")
    assert not (tmp_path / "run" / "artifact").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", ["stop", *(pytest.param(p, marks=pytest.mark.slow) for p in ("back_up", "skip"))]
)
def test_a_bad_step_of_one_arm_leaves_the_others_as_they_are(
    weights, tmp_path, monkeypatch, poison, policy
):
    from finetune_jax.training import fused_step

    monkeypatch.setattr(fused_step.FusedStep, "_measure", lambda self, requests: True)
    monkeypatch.setattr(fused_step, "_ARITHMETIC_SECONDS", 0.0)
    # With the highest rate the loss becomes infinite; the other arms read the same batches.
    rates = [0.01, 3e38, 0.1]
    setups = [
        setup_of(weights, optimizer__learning_rate=r, train__on_nan=policy, train__nan_limit=2)
        for r in rates
    ]
    results = run_arms(setups, [tmp_path / str(i) for i in range(3)])
    assert "the loss is" in results[1]["error"] or "in a row" in results[1]["error"]
    for number in (0, 2):
        train(setups[number], tmp_path / f"solo{number}")
        np.testing.assert_allclose(
            losses(tmp_path / str(number)), losses(tmp_path / f"solo{number}"), rtol=1e-5
        )


def test_a_checkpoint_of_an_older_version_that_is_not_finite_is_passed_over(
    weights, tmp_path, poison, monkeypatch
):
    poison.add(4)
    setup = setup_of(weights, data__validation="", data__test="")

    class Stop(Exception):
        pass

    def interrupt(step, split, metrics):
        if step == 6:
            raise Stop

    with monkeypatch.context() as older:
        older.setattr(train_phase, "check_step", lambda *_, **__: None)
        older.setattr(checkpoint_integrity, "seal_meta", lambda meta, content, metrics: _old(meta))
        older.setattr(checkpoints, "seal_meta", lambda meta, content, metrics: _old(meta))
        with pytest.raises(Stop):
            train(setup, tmp_path / "run", interrupt)
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "5"}
    poison.clear()
    train(setup, tmp_path / "run")
    assert all(np.isfinite(x).all() for x in tensors(tmp_path / "run").values())


def _old(meta):
    return {k: v for k, v in meta.items() if k in checkpoint_integrity._OLD_KEYS}


def test_one_class_in_training_is_refused_before_the_weights_are_read(
    weights, tmp_path, monkeypatch
):
    setup = setup_of(weights, data__cache_bytes=0)
    examples = [setup.source.read("train[:64]")[i] for i in range(64)]
    same = [example for example in examples if example["label"] == examples[0]["label"]]
    monkeypatch.setattr(preparing, "_open_split", lambda *_: same)
    for cache_bytes in (0, 2**20):
        setup.config.data.cache_bytes = cache_bytes
        with pytest.raises(UserError, match=r"data.train='train\[:32\]'.*all labels are of the cl"):
            train(setup, tmp_path / str(cache_bytes))
        assert not (tmp_path / str(cache_bytes) / "config.json").exists()


def test_lines_of_metrics_are_json_without_nan(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train", "loss": NaN}\n{"step": 9, "split": "train", "loss": 1}\n'
    )
    with MetricsWriter(tmp_path, tensorboard=True, resume_step=1) as writer:
        writer.write(2, "validation", {"loss": 1.0, "kappa": float("nan")})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [parse_json(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] is None and rows[1]["kappa"] is None


def test_the_config_of_an_older_version_gets_the_defaults_of_new_keys():
    new, old = to_json(default()), to_json(default())
    del old["train"]["on_nan"], old["mesh"]
    assert completed(old) == new


@pytest.mark.slow
def test_an_evaluation_that_is_not_finite_is_answered(weights, tmp_path, monkeypatch):
    refuse = []

    def score(*_):
        if refuse:
            raise NonFinitePredictions("outputs are NaN for 3 of 32 examples")
        return original(*_)

    original = run_lib.Run.score
    monkeypatch.setattr(run_lib.Run, "score", score)
    refuse.append(True)
    with pytest.raises(UserError, match="step 2  validation: outputs are NaN for 3 of 32 examples"):
        train(setup_of(weights), tmp_path / "stop")
    assert not [*(tmp_path / "stop" / "checkpoints").glob("2")]
    with pytest.raises(UserError, match="already gone back 2 times"):
        train(setup_of(weights, train__on_nan="back_up", train__nan_limit=2), tmp_path / "back_up")

    def interrupt(step, split, metrics):
        if step == 6:
            refuse.clear()

    result = train(setup_of(weights, train__on_nan="skip"), tmp_path / "skip", interrupt)
    assert np.isfinite(result["validation"]["loss"])

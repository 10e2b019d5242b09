"""Arms in lockstep give the results of single runs, and an arm that fails stops no other arm."""

import time

import numpy as np
import pytest
from small_runs import config_of, losses

from finetune_jax.config import default, to_json
from finetune_jax.setup import open_setup
from finetune_jax.training import arms, fused_step
from finetune_jax.training.arms import run_arms, structure
from finetune_jax.training.loop import train


def setup_of(weights, scheme, **changes):
    """The setup of an arm of 4 steps."""
    return open_setup(
        config_of(
            weights,
            scheme,
            **{
                "data__train": "train[:48]",
                "train__steps": 4,
                "checkpoint__every_steps": default().checkpoint.every_steps,
                **changes,
            },
        )
    )


def fuse_always(monkeypatch):
    monkeypatch.setattr(fused_step.FusedStep, "_measure", lambda self, requests: True)


GRID = [
    {"seed": seed, "optimizer__learning_rate": rate, "optimizer__weight_decay": 1e-3}
    for seed in (0, 1)
    for rate in (0.01, 0.1)
]


@pytest.mark.parametrize(
    "scheme",
    [
        "head",
        pytest.param("lora(rank=2) + head", marks=pytest.mark.slow),
        pytest.param("last_k(1) + phase(steps=2) >> last_k(2)", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("augment", ["", pytest.param("flip", marks=pytest.mark.slow)])
def test_each_arm_equals_its_solo_run(weights, tmp_path, monkeypatch, scheme, augment):
    if augment and scheme != "head":
        pytest.skip("augmentation is tried with one scheme")
    fuse_always(monkeypatch)
    setups = [setup_of(weights, scheme, data__augment=augment, **c) for c in GRID]
    folders = [tmp_path / str(i) for i in range(4)]
    results = run_arms(setups, folders)
    assert len({tuple(losses(f)) for f in folders}) == 4
    for number in (0, 3):
        solo = train(setups[number], tmp_path / f"solo{number}")
        np.testing.assert_allclose(
            losses(folders[number]), losses(tmp_path / f"solo{number}"), rtol=1e-5
        )
        for split in ("validation", "test"):
            np.testing.assert_allclose(
                results[number][split]["loss"], solo[split]["loss"], rtol=1e-5
            )
        assert results[number]["audit"] == solo["audit"]


@pytest.mark.slow
def test_arms_bound_by_arithmetic_run_one_after_another_without_a_fused_program(
    weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fused_step, "_ARITHMETIC_SECONDS", 0.0)
    monkeypatch.setattr(fused_step.FusedStep, "_arguments", lambda *_: pytest.fail("was fused"))
    setups = [setup_of(weights, "last_k(1)", seed=s) for s in (0, 1)]
    results = run_arms(setups, [tmp_path / "0", tmp_path / "1"])
    assert "2 arms one after another" in capsys.readouterr().err
    solo = train(setups[1], tmp_path / "solo")
    assert results[1]["test"] == solo["test"]
    assert losses(tmp_path / "1") == losses(tmp_path / "solo")


def test_a_fused_step_that_is_slow_is_tried_once():
    calls = []

    def slow():
        calls.append(0)
        time.sleep(0.01)

    assert fused_step._seconds(slow, repeats=5, limit=0.001) >= 0.01
    assert len(calls) == 2  # the first call is the warm-up


@pytest.mark.slow
def test_a_diverging_arm_does_not_touch_the_others(weights, tmp_path, monkeypatch):
    fuse_always(monkeypatch)
    rates = [0.01, 3e38, 0.1]
    setups = [setup_of(weights, "last_k(1)", optimizer__learning_rate=r) for r in rates]
    folders = [tmp_path / str(i) for i in range(3)]
    results = run_arms(setups, folders)
    assert "the loss is" in results[1]["error"]
    assert not (folders[1] / "result.json").exists()
    for number in (0, 2):
        train(setups[number], tmp_path / f"solo{number}")
        np.testing.assert_allclose(
            losses(folders[number]), losses(tmp_path / f"solo{number}"), rtol=1e-5
        )


@pytest.mark.slow
def test_an_arm_that_resumes_joins_those_that_start(weights, tmp_path, monkeypatch):
    fuse_always(monkeypatch)
    setups = [setup_of(weights, "head", seed=s, checkpoint__every_steps=1) for s in (0, 1)]
    folders = [tmp_path / "0", tmp_path / "1"]
    train(setups[1], tmp_path / "solo")

    class Stop(Exception):
        pass

    from finetune_jax.training.checkpoints import Checkpoints

    original = Checkpoints.save

    def save(self, state, *rest):
        original(self, state, *rest)
        if int(state.step) == 2:
            self.wait()
            raise Stop

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(Stop):
        train(setups[1], folders[1])
    monkeypatch.setattr(Checkpoints, "save", original)
    run_arms(setups, folders)
    np.testing.assert_allclose(losses(folders[1]), losses(tmp_path / "solo"), rtol=1e-5)
    assert len(losses(folders[0])) == 4


def test_groups_are_as_large_as_the_memory(weights, tmp_path, monkeypatch):
    fuse_always(monkeypatch)
    sizes = []
    original = fused_step.FusedStep.__init__

    def count(self, requests, fused=None):
        sizes.append(len(requests))
        original(self, requests, fused)

    monkeypatch.setattr(fused_step.FusedStep, "__init__", count)
    setups = [setup_of(weights, "head", seed=s) for s in range(3)]
    monkeypatch.setattr(arms._Group, "fitting", lambda self, limit: 2)
    results = run_arms(setups, [tmp_path / str(i) for i in range(3)])
    assert sizes == [2, 1]
    assert all("test" in r for r in results)


def test_structure_tells_what_is_another_program(weights):
    def json_of(*args, **changes):
        return to_json(setup_of(*args, **changes).config)

    base = structure(json_of(weights, "head"))
    assert base == structure(
        json_of(weights, "head", seed=3, optimizer__learning_rate=1.0, task__label_smoothing=0.1)
    )
    assert base != structure(json_of(weights, "head", optimizer__weight_decay=0.1))
    assert base != structure(json_of(weights, "last_k(1)"))


@pytest.mark.slow
def test_a_step_that_jax_cannot_batch_runs_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr(
        fused_step, "_ARITHMETIC_SECONDS", float("inf")
    )  # so that the fused step is always tried
    setups = []
    for rate in (0.01, 0.1):
        config = default()
        config.scheme, config.optimizer.learning_rate = "last_k(1)", rate
        config.model.name, config.data.image_size = "mobilenetv1_025", 32
        config.data.train, config.data.validation = "train[:8]", ""
        config.data.test = "test[:8]"
        config.train.batch_size, config.train.steps, config.eval.batch_size = 4, 2, 8
        config.log.tensorboard = False
        setups.append(open_setup(config))
    results = run_arms(setups, [tmp_path / str(i) for i in range(2)])
    assert all("test" in result for result in results)

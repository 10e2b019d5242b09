"""Proposals of what to unfreeze: the profile of gradients, and the schemes that follow."""

import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import run_command

from finetune_jax import cli, tree
from finetune_jax.base_variables import load_variables
from finetune_jax.config import default
from finetune_jax.reporting.plan_tables import profile_tables
from finetune_jax.setup import open_setup
from finetune_jax.training import gradient_profile, importance
from finetune_jax.training.importance import by_stage, measure, propose
from finetune_jax.training.phase import PhaseRun


@pytest.fixture(scope="module")
def measured(weights):
    """(variables, batches, values of `measure`) of a ResNet-8 on two batches."""
    config = default()
    config.model.name = "resnet8_cifar"
    config.pretrained.path = str(weights)
    config.data.image_size = 16
    config.train.batch_size = 16
    config.batch_norm = "frozen_all"
    phase = PhaseRun(open_setup(config))
    variables, _ = load_variables(phase.setup)
    rng = np.random.default_rng(0)
    batches = [
        {
            "image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
            "label": rng.integers(0, 10, 16).astype(np.int32),
        }
        for _ in range(2)
    ]
    state, frozen = phase.create_state(variables)
    return phase, variables, batches, measure(phase, state, frozen, batches)


def test_the_statistics_are_their_formulas(measured):
    phase, variables, batches, values = measured
    model, prepare_images = phase.setup.model, phase.setup.preprocess.device

    def loss(params, batch):
        logits = model.apply({**variables, "params": params}, prepare_images(batch))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    grads = [tree.flatten(jax.jit(jax.grad(loss))(variables["params"], b)) for b in batches]
    flat = tree.flatten(variables["params"])
    path = "layer2_block0/conv1/kernel"
    norms = [float(jnp.linalg.norm(g[path])) for g in grads]
    weight = float(jnp.linalg.norm(flat[path]))
    assert values["rgn"][path] == pytest.approx(np.mean(norms) / weight, rel=1e-4)
    assert values["weight"][path] == pytest.approx(weight, rel=1e-5)
    assert values["gradient"][path] == pytest.approx(np.sqrt(np.mean(np.square(norms))), rel=1e-4)
    both = np.stack([g[path] for g in grads])
    ratio = (both.mean(0) ** 2).sum() / both.var(0).sum()
    assert values["snr"][path] == pytest.approx(ratio, rel=1e-3)
    assert values["rgn"].keys() == flat.keys()


def test_stages_add_up_squares():
    values = {
        "rgn": {"a/x": 1.0, "a/y": 1.0, "head/kernel": 1.0},
        "snr": {"a/x": 1.0, "a/y": 3.0, "head/kernel": 5.0},
        "gradient": {"a/x": 3.0, "a/y": 4.0, "head/kernel": 1.0},
        "weight": {"a/x": 6.0, "a/y": 8.0, "head/kernel": 4.0},
    }
    rows = by_stage(values, {"a/x": 1, "a/y": 3, "head/kernel": 2}, ["a", "empty", "head"])
    assert rows == [
        {"stage": "a", "params": 4, "rgn": 0.5, "snr": 2.5},
        {"stage": "head", "params": 2, "rgn": 0.25, "snr": 5.0},
    ]


def test_proposals_hold_the_highest_stage_and_half_of_the_sum():
    rows = [
        {"stage": s, "rgn": r} for s, r in (("stem", 3.0), ("b1", 1.0), ("b2", 4.0), ("head", 99.0))
    ]
    schemes = [scheme for scheme, _ in propose(rows)]
    assert schemes == ["linear_probe", "stages('b2') + head", "auto_rgn", "full"]
    rows[2]["rgn"] = 3.5
    assert "stages('stem', 'b2') + head" in [s for s, _ in propose(rows)]


def test_a_stage_can_be_read_beside_a_head_that_dwarfs_it(tmp_path):
    rows = [
        {"stage": s, "rgn": r, "snr": r, "params": 1}
        for s, r in (("stem", 1.0), ("b1", 2.0), ("head", 900.0))
    ]
    full = {"scheme": "full", "reason": "", "trainable_params": 1, "flops_step": 1.0}
    full |= {"temp_bytes": 1, "optimizer_bytes": 1}
    lines = profile_tables({"stages": rows, "proposals": [full]}).splitlines()
    bars = {words[0]: words[1] for line in lines if "#" in line and (words := line.split())}
    assert bars == {"stem": "#" * 10, "b1": "#" * 20, "head": "#" * 19 + ">"}


def test_the_proposal_is_a_command_with_the_config_of_the_user():
    arguments = ["--config", "mine.py", "--config.data.source=folder:my photos", "--json"]
    arguments += ["--output", "out", "--batches=2", "--config.scheme=full", "--config.seed", "3"]
    command = cli.train_command("stages('b2') + head", arguments)
    assert shlex.split(command) == [
        "python", "-m", "finetune_jax.train", "--config", "mine.py",
        "--config.data.source=folder:my photos", "--config.seed", "3",
        "--config.scheme=stages('b2') + head", "--workdir=runs/suggested",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_proposes_schemes_with_their_cost(small_config, tmp_path):
    output = tmp_path / "out"
    process = run_command(
        "suggest", f"--config={small_config}", f"--output={output}", "--batches=2"
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((output / "suggest.json").read_text())
    assert [row["stage"] for row in report["stages"]][:2] == ["stem", "layer1_block0"]
    costs = {p["scheme"]: p["flops_step"] for p in report["proposals"]}
    assert costs["linear_probe"] < 0.4 * costs["full"]
    assert (output / "profile.png").stat().st_size > 1000
    assert "solving the new head" in process.stderr
    assert "linear_probe" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "digits"), [("regression", ""), ("ordinal", ""), ("multilabel", ":attributes")]
)
def test_a_new_head_of_any_task_is_fitted_before_gradients_are_measured(
    weights, monkeypatch, task, digits
):
    config = default()
    config.model.name = "resnet8_cifar"
    config.pretrained.path = str(weights)
    config.data.image_size = 16
    config.data.source = "digits" + digits
    config.data.train = "train[:32]"
    config.train.batch_size = 16
    config.task.name = task
    losses = []
    monkeypatch.setattr(importance, "propose", lambda rows: [])  # costs are compiled
    fit = gradient_profile._with_fitted_head

    def fitted(setup, variables, source):
        found = fit(setup, variables, source)
        batch = source.batch(0)
        for each in (variables, found):
            x = setup.preprocess.device(batch)
            outputs = setup.model.apply(each, x)
            losses.append(float(setup.task.per_example(outputs, batch)["loss"].mean()))
        return found

    monkeypatch.setattr(gradient_profile, "_with_fitted_head", fitted)
    report = gradient_profile.profile(config, 2)
    assert len(report["stages"]) == 5 and losses[1] < 0.8 * losses[0]

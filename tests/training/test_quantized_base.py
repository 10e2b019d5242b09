"""Runs whose frozen weights are stored in few bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import batch_of, config_of, losses, scaled, tensors

from finetune_jax import tree
from finetune_jax.artifact.folder import Artifact
from finetune_jax.errors import UserError
from finetune_jax.quantization import dequantize, is_weight, quantized_leaves
from finetune_jax.reporting.plan_tables import plan_tables
from finetune_jax.setup import open_setup
from finetune_jax.training import fused_step
from finetune_jax.training.arms import run_arms
from finetune_jax.training.cost import phase_figures
from finetune_jax.training.gradient_check import check_gradients
from finetune_jax.training.loop import train
from finetune_jax.training.phase import PhaseRun

LORA = "lora(rank=2) + head"
slow = pytest.mark.slow


def run(weights, folder, scheme=LORA, format_="int8", **changes):
    config = config_of(weights, scheme, model__frozen_dtype=format_, **changes)
    return train(open_setup(config), folder)


@slow
@pytest.mark.parametrize("format_", ["int8", "fp8", "int4", "nf4"])
def test_the_artifact_has_the_codes_that_the_run_trained_over(weights, tmp_path, format_):
    """With all leaves, or the changed ones: both files give the same leaves, bit by bit."""
    result = run(weights, tmp_path / "all", format_=format_)
    assert result["audit"]["frozen_leaves"] > 0
    run(weights, tmp_path / "delta", format_=format_, artifact__contents="delta")
    whole = Artifact.load(tmp_path / "all")
    delta = Artifact.load(tmp_path / "delta", weights)
    assert tree.fingerprint(whole.variables) == tree.fingerprint(delta.variables)
    found = quantized_leaves(whole.variables["params"])
    assert len(found) >= 7 and set(found.values()) == {format_}
    assert not any(name.split("/")[-1] == format_ for name in tensors(tmp_path / "delta"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    assert whole.predict(list(pixels)) == delta.predict(list(pixels))


@slow
def test_deltas_are_merged_into_the_dequantized_base(weights, tmp_path, capsys):
    run(weights, tmp_path / "beside")
    result = run(weights, tmp_path / "merged", artifact__merge=True, artifact__contents="delta")
    assert "the base is dequantized" in capsys.readouterr().err
    assert result["largest_logit_difference"] < 1e-4
    beside = Artifact.load(tmp_path / "beside")
    merged = Artifact.load(tmp_path / "merged", weights)
    assert not quantized_leaves(merged.variables["params"])
    images = {"image": np.asarray(batch_of(16)["image"])}
    np.testing.assert_allclose(merged.outputs(images), beside.outputs(images), atol=1e-4)


def quantized_halves(weights, scheme, format_):
    """(phase, f32 variables, state, frozen half) of a run over quantized weights."""
    setup = open_setup(config_of(weights, scheme, model__frozen_dtype=format_))
    phase = PhaseRun(setup, 0, 0, 3)
    variables = setup.initial_variables()
    key = jax.random.key(1)
    params = setup.plan.add_deltas(variables["params"], key)
    state, frozen = phase.create_state({**variables, "params": params})
    return phase, {**variables, "params": params}, state, frozen


@pytest.mark.parametrize("format_, least", [("int8", 3.8), ("fp8", 3.8), ("int4", 7), ("nf4", 7)])
def test_frozen_weights_take_the_bytes_of_their_format(weights, format_, least):
    _, variables, _, frozen = quantized_halves(weights, LORA, format_)
    before = tree.flatten(variables["params"])
    paths = [p for p in before if is_weight(p, before[p]) and not p.startswith("head")]
    assert sorted(quantized_leaves(frozen.params)) == sorted(paths)
    after = tree.flatten(frozen.params)
    now = sum(tree.nbytes(x) for p, x in after.items() if p.rsplit("/", 1)[0] in paths)
    assert sum(tree.nbytes(before[p]) for p in paths) / now > least
    # Trainable leaves are masters in f32, and what is not a weight stays as it was.
    rest = {p: x for p, x in after.items() if p.rsplit("/", 1)[0] not in paths}
    assert all(np.array_equal(x, before[p]) for p, x in rest.items())


@pytest.mark.slow
def test_the_step_is_that_of_the_dequantized_base(weights):
    """Loss and gradients of LoRA and the head are exactly those over f32 weights of equal value."""
    phase, _, state, frozen = quantized_halves(weights, LORA, "int4")
    batch = batch_of(16, n=16)
    step = jax.jit(phase.train_step())
    plain = frozen.replace(params=dequantize(frozen.params))
    (ours, mine), (theirs, other) = step(state, frozen, batch), step(state, plain, batch)
    np.testing.assert_allclose(mine["loss"], other["loss"], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@slow
@pytest.mark.parametrize("format_, least", [("int8", 0.999), ("nf4", 0.9)])
def test_gradients_over_the_quantized_base_point_where_those_over_f32_do(weights, format_, least):
    phase, variables, state, frozen = quantized_halves(weights, LORA, format_)
    _, kept = phase.plan.split(variables["params"])
    batch = batch_of(16, n=16)

    def loss(params, base):
        logits = phase.model.apply(
            {"params": tree.merge(params, base), "batch_stats": frozen.stats}, scaled(batch)
        )
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1).mean()

    both = [jax.grad(loss)(state.params, base) for base in (kept, frozen.params)]
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in both)
    assert float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)) > least


@pytest.mark.parametrize(
    "scheme, format_, least",
    [
        pytest.param(LORA, "nf4", 0.9, marks=slow),
        pytest.param(LORA, "int8", 0.99, marks=slow),
        pytest.param(
            "head + phase(steps=2) >> full + phase(quantize='int8')", "", 0.98, marks=slow
        ),
    ],
)
def test_the_plan_compares_gradients_and_has_the_bytes(weights, scheme, format_, least):
    changes = {"model__frozen_dtype": format_} if format_ else {}
    setup = open_setup(config_of(weights, scheme, **changes))
    [found] = check_gradients(setup)
    assert found["phase"] == len(setup.phases) and found["examples"] == 16
    assert least <= found["cosine"] < 1 and 0.8 < found["norm_ratio"] < 1.25
    [*_, last] = setup.phases
    figures = phase_figures(PhaseRun(setup, len(setup.phases) - 1))
    shapes = [leaf.shape for leaf in last.plan.leaves if not leaf.trains]
    assert figures["frozen_bytes_float32"] == 4 * sum(map(math.prod, shapes))
    assert format_ != "nf4" or figures["frozen_bytes"] < figures["frozen_bytes_float32"] / 6
    table = plan_tables({**figures, **plan_parts(figures, found)}, setup)
    assert f"cosine {found['cosine']:.4f}" in table


def plan_parts(figures, found):
    costs = {f"{k}_full": v for k, v in figures.items() if k.endswith(("_bytes", "_step"))}
    phases = [{**figures, **costs, "flops_forward": 1.0}] * 2
    return {"phases": phases, "gradients": [found]}


def test_there_are_no_gradients_to_compare_in_float32(weights):
    with pytest.raises(UserError, match="--check_gradients: no phase of the run computes"):
        check_gradients(open_setup(config_of(weights, LORA)))


@slow
def test_the_prefix_cache_and_arms_as_one_program_work_over_quantized_weights(
    weights, tmp_path, monkeypatch
):
    result = run(weights, tmp_path / "cached", "last_k(1)", "int4")
    plain = run(weights, tmp_path / "plain", "last_k(1)", "int4", prefix_cache__enabled=False)
    assert result["audit"] == plain["audit"]
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "plain"), rtol=1e-5)
    monkeypatch.setattr(fused_step.FusedStep, "_measure", lambda self, requests: True)
    setups = [
        open_setup(config_of(weights, LORA, model__frozen_dtype="int8", seed=seed))
        for seed in range(2)
    ]
    run_arms(setups, [tmp_path / "0", tmp_path / "1"])
    train(setups[1], tmp_path / "solo")
    np.testing.assert_allclose(losses(tmp_path / "1"), losses(tmp_path / "solo"), rtol=1e-5)
    codes = [
        {p: x for p, x in tensors(tmp_path / name).items() if p.endswith("int8")}
        for name in ("0", "1", "solo")
    ]
    assert all(np.array_equal(codes[0][p], c[p]) for c in codes for p in codes[0])

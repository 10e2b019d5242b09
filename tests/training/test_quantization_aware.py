"""Phases that train with rounded weights, and runs whose artifact has weights in few bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import batch_of, config_of, losses, scaled, tensors

from finetune_jax import tree
from finetune_jax.artifact.folder import Artifact
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.quantization import (
    FORMATS,
    dequantize,
    is_weight,
    quantize,
    quantized_leaves,
    rounded,
)
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train
from finetune_jax.training.phase import PhaseRun

slow = pytest.mark.slow


@pytest.mark.parametrize("name", FORMATS)
def test_rounded_weights_have_the_values_of_the_codes_and_the_gradient_of_the_weights(name):
    key = jax.random.key(0)
    params = {"dense": {"kernel": jax.random.normal(key, (32, 5)), "bias": jnp.ones(5)}}
    formats = {"dense/kernel": FORMATS[name]}
    values = jax.jit(lambda p: rounded(p, formats))(params)
    expected = jax.jit(lambda p: dequantize(quantize(p, formats)))(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), values, expected))
    assert not np.array_equal(values["dense"]["kernel"], params["dense"]["kernel"])
    weight = jax.random.normal(jax.random.key(1), (32, 5))
    gradient = jax.grad(lambda p: (rounded(p, formats)["dense"]["kernel"] * weight).sum())(params)
    assert np.array_equal(gradient["dense"]["kernel"], weight)


def phase_of(weights, scheme, **changes):
    setup = open_setup(config_of(weights, scheme, **changes))
    phase = PhaseRun(setup, 0, 0, 3)
    variables = setup.initial_variables()
    params = setup.plan.add_deltas(variables["params"], jax.random.key(1))
    return phase, {**variables, "params": params}


@pytest.mark.parametrize("scheme", [pytest.param("last_k(1)", marks=slow), "lora(rank=2) + head"])
def test_a_phase_computes_with_the_weights_that_the_artifact_will_have(weights, scheme):
    """The loss of a step is that of the quantized model, and the masters are f32."""
    phase, variables = phase_of(weights, f"{scheme} + phase(quantize='int4')")
    plain, _ = phase_of(weights, scheme)
    base = {x.path for x in phase.plan.leaves if not x.delta}
    flat = tree.flatten(variables["params"])
    assert {path for path, _ in phase.model.formats} == {p for p in base if is_weight(p, flat[p])}
    params = quantize(variables["params"], dict(phase.model.formats))
    batch = scaled(batch_of(16))
    found = phase.model.apply(variables, batch)
    np.testing.assert_allclose(
        found, plain.model.apply({**variables, "params": params}, batch), rtol=1e-5, atol=1e-5
    )
    assert np.abs(found - plain.model.apply(variables, batch)).max() > 1e-2
    state, frozen = phase.create_state(variables)
    step = jax.jit(phase.train_step())
    after, _ = step(state, frozen, batch_of(16, n=16))
    changed = [
        a.dtype == jnp.float32 and not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True)
    ]
    # The first matrix of LoRA has no gradient while the second is 0.
    assert sum(changed) >= len(changed) / 2


@pytest.mark.slow
def test_the_gradient_over_rounded_inputs_points_where_that_over_f32_does(weights):
    """A rounding without a gradient would stop the gradient of LoRA at the first layer above it."""
    phase, variables = phase_of(weights, "lora(rank=2) + head + phase(quantize='w8a8')")
    plain, _ = phase_of(weights, "lora(rank=2) + head")
    trainable, frozen = phase.plan.split(variables["params"])
    trainable = jax.tree.map(lambda x: x + 0.01, trainable)
    batch = batch_of(16, n=16)

    def loss(params, model):
        params = tree.merge(params, frozen)
        logits = model.apply({**variables, "params": params}, scaled(batch))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1).mean()

    a, b = (
        jnp.concatenate([x.ravel() for x in jax.tree.leaves(jax.grad(loss)(trainable, model))])
        for model in (phase.model, plain.model)
    )
    assert float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)) > 0.99
    assert not np.array_equal(a, b)


def test_the_artifact_is_the_quantized_model_that_was_scored(weights, tmp_path):
    scheme = "last_k(1) + phase(steps=1) >> last_k(1) + phase(quantize='head=keep, .*=int8')"
    result = train(open_setup(config_of(weights, scheme)), tmp_path / "run")
    artifact = Artifact.load(tmp_path / "run")
    found = quantized_leaves(artifact.variables["params"])
    assert set(found.values()) == {"int8"} and not any(p.startswith("head") for p in found)
    evaluator = open_run(tmp_path / "run")
    again = evaluator.scores(evaluator.observe("test"))
    assert again["accuracy"] == result["test"]["accuracy"]
    np.testing.assert_allclose(again["loss"], result["test"]["loss"], rtol=1e-5)


@slow
@pytest.mark.parametrize("contents", ["all", "delta"])
def test_an_artifact_in_few_bits_of_a_run_in_float32(weights, tmp_path, contents):
    """Steps are those of a run without it; scores and files are those of the codes."""
    for name, rules in (("plain", ""), ("int4", "int4")):
        changes = {"artifact__quantize": rules, "artifact__contents": contents}
        setup = open_setup(config_of(weights, "last_k(1)", **changes))
        train(setup, tmp_path / name)
    assert losses(tmp_path / "plain") == losses(tmp_path / "int4")
    base = weights if contents == "delta" else ""
    before, after = (Artifact.load(tmp_path / name, base) for name in ("plain", "int4"))
    formats = dict.fromkeys(quantized_leaves(after.variables["params"]), FORMATS["int4"])
    assert len(formats) >= 7
    codes = jax.jit(lambda p: quantize(p, formats))(before.variables["params"])
    assert tree.fingerprint(codes) == tree.fingerprint(after.variables["params"])
    names = tensors(tmp_path / "int4")
    assert any(name.endswith("/int4") for name in names)
    assert any("stem" in name for name in names) == (contents == "all")
    result = json.loads((tmp_path / "int4" / "result.json").read_text())
    assert (
        result["test"]["loss"]
        != json.loads((tmp_path / "plain" / "result.json").read_text())["test"]["loss"]
    )


@pytest.mark.parametrize(
    "scheme, changes, message",
    [
        ("full + phase(quantize='int7')", {}, "phase: quantize: expected one of int8"),
        ("full + phase(quantize='hed=int8')", {}, "'hed=int8' has no effect.*Did you mean 'head'"),
        ("full + phase(quantize=8)", {}, "phase: quantize must be text, such as 'int8'"),
        ("full + phase(quantize='.*=keep')", {}, "keeps every weight"),
        ("full + phase(quantize='w8a8_static')", {}, "measured on a trained model"),
        ("full", {"artifact__quantize": "int8, stem=nf4"}, "artifact.quantize: .* earlier rules"),
        (
            "lora(rank=2) + phase(quantize='int8')",
            {"artifact__merge": True},
            "artifact.merge: merged weights would be other weights",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused(weights, scheme, changes, message):
    with pytest.raises(UserError, match=message):
        open_setup(config_of(weights, scheme, **changes))

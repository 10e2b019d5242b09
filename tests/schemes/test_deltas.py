"""Deltas: exact start, gradients for every leaf, counts by formula, and exact merging."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import (
    CASES,
    MERGED,
    RESNET,
    SIZE,
    TASK,
    VIT,
    adapted,
    head_size,
    images,
    scaled,
    train,
    vit,
)  # fmt: skip

from finetune_jax import tree
from finetune_jax.config import default
from finetune_jax.data.augment import InputPipeline
from finetune_jax.deltas import IA3, Adapted, Bottleneck, from_json, merge
from finetune_jax.errors import UserError
from finetune_jax.models import initial_variables
from finetune_jax.schemes import Phase, resolve
from finetune_jax.training import state as state_lib
from finetune_jax.training.audit import AuditError, audit, snapshot
from finetune_jax.training.optimizer import hyper_parameters, make_optimizer, make_rates
from finetune_jax.training.step import make_train_step


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_counts_are_the_formulas(base, name, scheme):
    _, plan, _, _ = adapted(base, name, f"{scheme} + head" if "mask" not in scheme else scheme)
    count = sum(math.prod(leaf.shape) for leaf in plan.leaves if leaf.trains)
    assert count == {"vit": VIT, "resnet": RESNET}[name][scheme] + head_size(name)
    assert resolve(plan.scheme, plan.stages, base[name][1]["params"],
                   base[name][1]["batch_stats"]) == plan  # fmt: skip
    assert tuple(from_json(d.to_json()) for d in plan.deltas) == plan.deltas


@pytest.mark.parametrize(("name", "scheme"), [c for c in CASES if not c[1].startswith("vpt")])
def test_a_delta_starts_as_the_base(base, name, scheme):
    model, _, with_deltas, variables = adapted(base, name, scheme)
    # Operation by operation: a compiler may fuse the two programs to different roundings.
    before = model.apply(base[name][1], images())
    after = with_deltas.apply(variables, images())
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_only_what_is_declared_moves_and_all_of_it_does(base, name, scheme):
    text = scheme if "mask" in scheme else f"{scheme} + head"
    _, plan, model, variables = adapted(base, name, text)
    after = train(plan, model, variables)
    counts = audit(plan, snapshot(variables), after)
    assert counts["moved_leaves"] == len(plan.trainable)


@pytest.mark.parametrize(("name", "scheme"), [c for c in CASES if c[1].startswith(MERGED)])
def test_merged_equals_unmerged(base, name, scheme):
    _, plan, model, variables = adapted(base, name, scheme)
    # Far from the start: every trainable leaf is random.
    params = tree.map_with_path(
        lambda p, x: x + 0.1 * jax.random.normal(jax.random.key(len(p)), x.shape)
        if p in plan.trainable
        else x,
        variables["params"],
    )
    moved = {**variables, "params": params}
    merged, difference = merge(model, moved, images())
    scale = float(jnp.max(jnp.abs(model.apply(moved, images()))))
    assert difference <= 1e-5 * max(scale, 1.0)
    assert tree.flatten(merged["params"]).keys() == tree.flatten(base[name][1]["params"]).keys()
    plain = model.model.apply(base[name][1], images())
    assert float(jnp.max(jnp.abs(plain - model.apply(moved, images())))) > 1e-3


@pytest.mark.parametrize("scheme", ["houlsby(size=8)", "vpt(tokens=3)", "adaptformer(size=8)"])
def test_what_no_kernel_can_express_is_not_merged(base, scheme):
    _, _, model, variables = adapted(base, "vit", scheme)
    with pytest.raises(UserError, match="cannot be merged"):
        merge(model, variables)


def test_dora_is_its_formula(base):
    _, plan, model, variables = adapted(base, "vit", "lora(rank=4, alpha=8, dora=True)")
    flat = {
        p: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape) if "lora_" in p else x
        for p, x in tree.flatten(variables["params"]).items()
    }
    merged, _ = merge(model, {**variables, "params": tree.unflatten(flat)})
    module = "block_1/attn/query"
    w = np.asarray(flat[f"{module}/kernel"], np.float64)
    v = w + 2.0 * np.asarray(flat[f"{module}/lora_a"]) @ np.asarray(flat[f"{module}/lora_b"])
    m = np.linalg.norm(w, axis=0) + np.asarray(flat[f"{module}/lora_shift"])
    expected = m * v / np.linalg.norm(v, axis=0)
    np.testing.assert_allclose(
        tree.flatten(merged["params"])[f"{module}/kernel"], expected, atol=1e-5
    )


def test_an_adapter_with_both_projections_at_zero_is_caught(base, monkeypatch):
    monkeypatch.setattr(
        Bottleneck,
        "initial",
        lambda self, key, leaves: {p: jnp.zeros(x.shape) for p, x in self.leaves(leaves).items()},
    )
    _, plan, model, variables = adapted(base, "vit", "pfeiffer(size=8) + head")
    after = train(plan, model, variables)
    with pytest.raises(AuditError, match="did not move.*adapter_down/kernel"):
        audit(plan, snapshot(variables), after)


def test_deltas_survive_rematerialisation(base):
    _, plan, _, variables = adapted(base, "vit", "lora(rank=4) + adaptformer(size=8) + head")
    plain = train(plan, plan.adapt(vit()), variables)
    remat = train(plan, plan.adapt(vit(remat=True)), variables)
    for path, value in tree.flatten(plain["params"]).items():
        np.testing.assert_allclose(value, tree.flatten(remat["params"])[path], atol=1e-5)


@pytest.mark.slow
def test_lora_forms_no_full_size_gradient(base):
    """A step costs two products with each frozen kernel per example, forward and input gradient."""
    from finetune_jax.training.cost import flops

    def step_flops(scheme):
        model, plan, with_deltas, variables = adapted(base, "vit_wide", scheme)
        config = default().optimizer
        tx = make_optimizer(config, make_rates(config, Phase(plan), 0, 10))
        step = make_train_step(with_deltas, TASK, plan, tx, InputPipeline(scaled))
        state, frozen = jax.eval_shape(
            lambda v: state_lib.create(
                v, plan, tx, hyper_parameters(config, plan), seed=0, ema=False
            ),
            variables,
        )
        batch = {
            "image": jax.ShapeDtypeStruct((64, SIZE, SIZE, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((64,), jnp.int32),
        }
        return flops(jax.jit(step).lower(state, frozen, batch).compile())

    full, probe, low_rank = (step_flops(s) for s in ("full", "head", "lora(rank=4) + head"))
    # Full: forward, input gradient, weight gradient. LoRA: the first two and thin products, and
    # nothing below the first block's projections.
    assert low_rank <= 0.70 * full
    assert low_rank <= 2.1 * probe


@pytest.mark.parametrize(
    "scheme",
    [
        "lora(rank=2) + ssf + ia3",
        "ssf + lora(rank=2, dora=True)",
        "lora(rank=2, dora=True) + ssf",
        "ia3 + lora(rank=2, dora=True, pissa=True)",
        "lora(rank=2, dora=True) + random_mask('norm_only')",
        pytest.param(
            "random_mask('bias_only') + ia3 + lora(rank=2, dora=True)", marks=pytest.mark.slow
        ),
    ],
)
def test_several_deltas_share_a_module(base, scheme):
    _, plan, model, variables = adapted(base, "vit", scheme)
    assert isinstance(model, Adapted)
    moved = {
        **variables,
        "params": tree.map_with_path(
            lambda p, x: x + 0.05 * jax.random.normal(jax.random.key(len(p)), x.shape)
            if p in plan.trainable
            else x,
            variables["params"],
        ),
    }
    _, difference = merge(model, moved, images())
    assert difference <= 1e-5 * max(float(jnp.max(jnp.abs(model.apply(moved, images())))), 1.0)


def test_the_order_in_which_kinds_are_written_does_not_matter(base):
    outputs = []
    for scheme in ("ssf + lora(rank=2, dora=True)", "lora(rank=2, dora=True) + ssf"):
        _, _, model, variables = adapted(base, "vit", scheme)
        params = tree.map_with_path(
            lambda p, x: x + 0.1 if "lora" in p or "ssf" in p else x, variables["params"]
        )
        outputs.append(model.apply({**variables, "params": params}, images()))
    np.testing.assert_array_equal(*outputs)


def test_a_merge_that_changes_the_logits_is_refused(base, monkeypatch):
    _, _, model, variables = adapted(base, "vit", "ia3")
    params = tree.map_with_path(lambda p, x: 1.5 * x if "ia3" in p else x, variables["params"])
    monkeypatch.setattr(IA3, "merge", lambda self, leaves: {})
    with pytest.raises(UserError, match="merged model computes other logits"):
        merge(model, {**variables, "params": params}, images())


@pytest.mark.parametrize("pooling", ["token", "gap"])
@pytest.mark.parametrize("deep", [pytest.param(False, marks=pytest.mark.slow), True])
def test_prompts_leave_as_many_tokens_as_came(pooling, deep):
    model = vit(pooling=pooling)
    variables = initial_variables(model, SIZE)
    plan = resolve(f"vpt(tokens=3, deep={deep})", model.stages, variables["params"], {})
    params = plan.add_deltas(variables["params"], jax.random.key(2))
    seen = {
        stage: plan.adapt(model).apply({**variables, "params": params}, images(), stop=stage)
        for stage in ("block_1", "norm")
    }
    bare = model.apply(variables, images(), stop="norm")
    assert seen["norm"].shape == bare.shape
    assert not np.array_equal(seen["norm"], bare)
    # Shallow prompts pass through all blocks; the prompts of a deep scheme pass through one block
    # each.
    assert seen["block_1"].shape[1] == bare.shape[1] + (0 if deep else 3)


@pytest.mark.parametrize("of", ["lora(rank=4, pissa=True)", "random_mask('lora(rank=4)')"])
def test_a_random_mask_counts_what_trains(base, of):
    """Constants of a delta, such as PiSSA's start values, are not counted."""
    _, plan, _, _ = adapted(base, "vit", f"random_mask({of!r})")
    assert sum(math.prod(x.shape) for x in plan.leaves if x.trains) == VIT["lora(rank=4)"]


def test_a_random_mask_is_a_function_of_its_seed(base):
    def places(scheme):
        _, plan, _, variables = adapted(base, "vit", scheme)
        flat = tree.flatten(variables["params"])
        count = sum(math.prod(x.shape) for x in plan.leaves if x.trains)
        return count, {p: np.asarray(x) for p, x in flat.items() if p.endswith("_places")}

    count, first = places("random_mask('lora(rank=4)', seed=1)")
    assert count == VIT["lora(rank=4)"]
    again, other = places("random_mask('lora(rank=4)', seed=1)")[1], places(
        "random_mask('lora(rank=4)', seed=2)"
    )[1]  # fmt: skip
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[p], again[p]) for p in first)
    assert any(p not in other or not np.array_equal(first[p], other[p]) for p in first)
    # Every scalar at most once.
    assert all(len(np.unique(x)) == len(x) for x in first.values())


@pytest.mark.parametrize(
    ("name", "scheme", "message"),
    [
        ("vit", "lora(rank=0)", "rank must be from 1 to 32"),
        ("vit", "lora(on='qurey')", "Did you mean 'query'"),
        ("resnet", "lora(dora=True)", "need a dense kernel"),
        ("resnet", "ia3", "matches no module"),
        ("resnet", "vpt", "needs transformer blocks"),
        ("vit", "random_mask('norm_onli')", "Did you mean 'norm_only'"),
        ("vit", "random_mask('head')", "trains 0 scalars outside the head"),
        ("vit", "vpt(tokens=-1)", "tokens must be a whole number"),
        ("vit", "lora(on='head')", "matches only the head"),
        ("vit", "ssf(on='head')", "matches only the head"),
        ("vit", "lora(rank='8')", "rank must be a whole number"),
        ("vit", "lora(rank=2.5)", "rank must be a whole number"),
        ("vit", "ssf(std='a')", "std must be a number"),
        ("vit", "norm(decay=0.1)", "matches no leaf of the group"),
        ("vit", "full(lr=1e999)", "lr must be a number > 0"),
    ],
)
def test_bad_deltas_say_what_is_wrong(base, name, scheme, message):
    with pytest.raises(UserError) as error:
        adapted(base, name, scheme)
    assert message in str(error.value)

"""A frozen leaf costs no FLOPs and no bytes, whichever options read the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import TASK, batch_of, scaled, setup

from finetune_jax import tree
from finetune_jax.config import default
from finetune_jax.data.augment import InputPipeline
from finetune_jax.evaluation.step import make_eval_step
from finetune_jax.models import build, initialise
from finetune_jax.schemes import Phase
from finetune_jax.schemes.schedules import parse_schedule
from finetune_jax.training import state as state_lib
from finetune_jax.training.optimizer import hyper_parameters, make_optimizer, make_rates


def step_flops(name, size, scheme, **options):
    _, abstract, _, create, step = setup(name, size, scheme, **options)
    state, frozen = jax.eval_shape(create, abstract)
    compiled = jax.jit(step).lower(state, frozen, batch_of(size)).compile()
    return compiled.cost_analysis()["flops"]


def forward_flops(name, size):
    model = build(name, TASK.head_size, image_size=size)
    abstract = jax.eval_shape(lambda k: initialise(model, size, k), jax.random.key(0))
    step = make_eval_step(model, TASK, InputPipeline(scaled))
    return jax.jit(step).lower(abstract, batch_of(size)).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet8_cifar", 32), pytest.param("small_vit", 224, marks=pytest.mark.slow)],
)
def test_a_probe_costs_a_forward_pass(name, size):
    probe = step_flops(name, size, "linear_probe")
    assert probe <= 1.10 * forward_flops(name, size)
    assert probe <= 0.40 * step_flops(name, size, "full")
    # Options that read gradients must not bring back the backward pass of frozen leaves.
    readers = step_flops(name, size, "linear_probe", clip_norm=1.0, ema_decay=0.99)
    assert readers <= 1.01 * probe


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet8_cifar", 32), pytest.param("small_vit", 32, marks=pytest.mark.slow)],
)
def test_accumulation_keeps_a_probe_cheap(name, size):
    probe = step_flops(name, size, "linear_probe", accumulate=4, clip_norm=1.0, ema_decay=0.99)
    full = step_flops(name, size, "full", accumulate=4, clip_norm=1.0, ema_decay=0.99)
    assert probe <= 0.40 * full


@pytest.mark.parametrize("scheme", ["linear_probe", "last_k(1)", "norm_only", "full"])
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet8_cifar", 32), pytest.param("small_vit", 32, marks=pytest.mark.slow)],
)
def test_optimizer_bytes_are_those_of_the_trainable_leaves(name, size, scheme):
    _, abstract, plan, create, _ = setup(name, size, scheme)
    state, _ = jax.eval_shape(create, abstract)
    trainable, _ = plan.split(abstract["params"])
    moments = 2 * tree.nbytes(trainable)
    # Apart from two moments there are only step counters of a few bytes per group.
    assert moments <= tree.nbytes(state.opt_state) <= moments + 64


@pytest.mark.slow
def test_accumulated_gradients_equal_the_whole_batch():
    results = []
    for accumulate in (1, 4):
        _, _, _, create, step = setup(
            "small_vit", 32, "last_k(1)", accumulate=accumulate, name="sgd", momentum=0.0
        )
        model = build("small_vit", 5, image_size=32)
        state, frozen = create(initialise(model, 32, jax.random.key(0)))
        new, metrics = jax.jit(step)(state, frozen, batch_of(32))
        results.append((new.params, metrics["loss"]))
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(results[0][0]), jax.tree.leaves(results[1][0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_clipping_uses_the_norm_of_the_trainable_half():
    moves = {}
    for clip in (0.0, 1e-3):
        _, abstract, _, create, step = setup(
            "resnet8_cifar", 32, "linear_probe", name="sgd", momentum=0.0, clip_norm=clip,
            learning_rate=1.0, schedule="constant",
        )  # fmt: skip
        model = build("resnet8_cifar", 5, image_size=32)
        state, frozen = create(initialise(model, 32, jax.random.key(0)))
        new, metrics = jax.jit(step)(state, frozen, batch_of(32))
        delta = jax.tree.map(jnp.subtract, new.params, state.params)
        moves[clip] = float(jnp.sqrt(sum(jnp.sum(d**2) for d in jax.tree.leaves(delta))))
    np.testing.assert_allclose(moves[1e-3], 1e-3, rtol=1e-3)
    np.testing.assert_allclose(moves[0.0], float(metrics["grad_norm"]), rtol=1e-3)


@pytest.mark.parametrize("policy", ["frozen", "frozen_all", "track"])
def test_statistics_follow_the_policy(policy):
    _, _, plan, create, step = setup("resnet8_cifar", 32, "last_k(1)", batch_norm=policy)
    model = build("resnet8_cifar", 5, image_size=32)
    variables = initialise(model, 32, jax.random.key(0))
    state, frozen = create(variables)
    new, _ = jax.jit(step)(state, frozen, batch_of(32))
    after = tree.flatten(state_lib.variables(new, frozen)["batch_stats"])
    for path, value in tree.flatten(variables["batch_stats"]).items():
        moved = not np.array_equal(value, after[path])
        assert moved == (path in plan.tracked_statistics), path


def test_groups_get_their_own_rate():
    rules = "[('head/kernel', 'fast(lr=10)'), ('head/bias', 'slow(lr=0.1)'), ('.*', 'frozen')]"
    deltas = {}
    for scheme in ("linear_probe", rules):
        _, _, _, create, step = setup(
            "small_vit", 32, scheme, name="sgd", momentum=0.0, schedule="constant"
        )
        model = build("small_vit", 5, image_size=32)
        state, frozen = create(initialise(model, 32, jax.random.key(0)))
        new, _ = jax.jit(step)(state, frozen, batch_of(32))
        deltas[scheme] = jax.tree.map(jnp.subtract, new.params, state.params)["head"]
    np.testing.assert_allclose(
        deltas[rules]["kernel"], 10 * deltas["linear_probe"]["kernel"], rtol=1e-4, atol=1e-9
    )
    np.testing.assert_allclose(
        deltas[rules]["bias"], 0.1 * deltas["linear_probe"]["bias"], rtol=1e-4, atol=1e-9
    )


def test_schedule_warms_up_and_decays_to_zero():
    schedule = parse_schedule("cosine", 12, warmup=4)
    expected = [t / 4 for t in range(4)] + [0.5 * (1 + np.cos(np.pi * t / 8)) for t in range(9)]
    np.testing.assert_allclose([float(schedule(t)) for t in range(13)], expected, atol=1e-6)


def test_trainable_leaves_keep_f32_masters_under_bf16_frozen_storage():
    _, _, plan, _, _ = setup("small_vit", 32, "last_k(1)")
    model = build("small_vit", 5, image_size=32)
    variables = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), initialise(model, 32, jax.random.key(0))
    )
    config = default().optimizer
    tx = make_optimizer(config, make_rates(config, Phase(plan), 0, 10))
    state, frozen = state_lib.create(
        variables,
        plan,
        tx,
        hyper_parameters(config, plan),
        seed=0,
        ema=False,
        frozen_dtype=jnp.bfloat16,
    )
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(frozen.params)} == {jnp.dtype("bfloat16")}

"""Classical mistakes of freezing; each test fails if the code makes the mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import TASK, batch_of, scaled, setup

from finetune_jax import tree
from finetune_jax.config import default
from finetune_jax.data.augment import InputPipeline
from finetune_jax.errors import UserError
from finetune_jax.models import build, initialise
from finetune_jax.schemes import Phase, resolve
from finetune_jax.training import state as state_lib
from finetune_jax.training.optimizer import hyper_parameters, make_optimizer, make_rates
from finetune_jax.training.step import make_train_step


def initial(name="small_vit"):
    variables = initialise(build(name, 5, image_size=32), 32, jax.random.key(3))
    # A head of zeros would give the stages below it no gradient.
    kernel = variables["params"]["head"]["kernel"]
    variables["params"]["head"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(4), kernel.shape)
    return variables


def run_steps(scheme, count=1, model="small_vit", variables=None, optimizer="sgd", **options):
    """(variables before, states after each step, metrics) under SGD without momentum by default."""
    # As in the config, the name of the optimizer is the option "name" of `setup`.
    options = {"name": optimizer, "momentum": 0.0, "schedule": "constant", **options}
    _, _, _, create, step = setup(model, 32, scheme, **options)
    before = initial(model) if variables is None else variables
    state, frozen = create(before)
    step, states, metrics = jax.jit(step), [], []
    for number in range(count):
        state, values = step(state, frozen, batch_of(32, seed=number))
        states.append(state)
        metrics.append(values)
    return before, states, frozen, metrics


def loss_of(params, batch, name="small_vit"):
    """Mean cross entropy of a model in inference mode, written without the code under test."""
    images = batch["image"].astype(jnp.float32) / 255
    logits = build(name, 5, image_size=32).apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


@pytest.fixture(scope="module")
def gradients():
    """Gradients of all params on the first batch."""
    return jax.jit(jax.grad(loss_of))(initial()["params"], batch_of(32))


def test_outer_clip(gradients):
    own, everything = optax.global_norm(gradients["head"]), optax.global_norm(gradients)
    assert everything > 1.02 * own
    # The limit is above the gradient norm of the head, and below the gradient norm of all leaves.
    before, (state,), _, _ = run_steps("head", learning_rate=0.1, clip_norm=float(own) * 1.01)
    for name, leaf in state.params["head"].items():
        expected = before["params"]["head"][name] - 0.1 * gradients["head"][name]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-7)


def test_logged_norm(gradients):
    _, _, _, (metrics,) = run_steps("head")
    np.testing.assert_allclose(
        metrics["grad_norm"], optax.global_norm(gradients["head"]), rtol=1e-5
    )


def test_masked_adam_and_decay_of_frozen_leaves():
    """Frozen leaves get neither gradients nor decay; trainable leaves get the AdamW of optax."""
    before, states, frozen, _ = run_steps(
        "head", 3, optimizer="adamw", learning_rate=0.01, weight_decay=0.5
    )
    start = tree.flatten(before["params"])
    for path, leaf in tree.flatten(frozen.params).items():
        assert np.array_equal(leaf, start[path]), path
    reference = optax.adamw(0.01, weight_decay=0.5, mask=lambda p: {"kernel": True, "bias": False})
    head = before["params"]["head"]
    moments = reference.init(head)
    for number, state in enumerate(states):
        grads = jax.grad(
            lambda h, n=number: loss_of({**before["params"], "head": h}, batch_of(32, seed=n))
        )(head)
        updates, moments = reference.update(grads, moments, head)
        head = optax.apply_updates(head, updates)
        for name in head:
            np.testing.assert_allclose(state.params["head"][name], head[name], rtol=1e-4, atol=1e-6)


def test_bf16_trainable_leaves():
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), initial())
    ones = jax.tree.map(jnp.ones_like, variables["params"]["norm"]["scale"])
    variables["params"]["norm"]["scale"] = ones
    _, states, _, _ = run_steps("norm", 3, variables=variables, learning_rate=1e-3)
    scale = np.asarray(states[-1].params["norm"]["scale"])
    assert scale.dtype == np.float32
    # In bf16 every update of this size would be rounded away.
    assert 0 < np.abs(scale - 1).max() < 2**-8
    assert (scale.astype(jnp.bfloat16) == 1).mean() > 0.5


@pytest.mark.parametrize(("policy", "leaks"), [("frozen", False), ("track", True)])
def test_batch_norm_leak(policy, leaks):
    before, states, frozen, _ = run_steps(
        "head", 3, model="resnet8_cifar", batch_norm=policy, learning_rate=0.1
    )
    model = build("resnet8_cifar", 5, image_size=32)
    images = batch_of(32, seed=9)["image"].astype(jnp.float32) / 255
    features = jax.jit(lambda v: model.apply(v, images, stop="head"))
    after = state_lib.variables(states[-1], frozen)
    drift = np.abs(np.asarray(features(before)) - np.asarray(features(after))).max()
    assert (drift > 0) == leaks


def test_tied_leaves_with_two_labels():
    variables = initial()
    shared = variables["params"]["block_0"]["norm1"]["scale"]
    variables["params"]["norm"]["scale"] = shared
    abstract = jax.eval_shape(lambda: variables)
    stages = build("small_vit", 5, image_size=32).stages
    plan = resolve("last_k(1)", stages, abstract["params"], {})
    with pytest.raises(UserError, match="block_0/norm1/scale.*norm/scale|norm/scale.*block_0"):
        plan.split(variables["params"])
    both = resolve("norm_only", stages, abstract["params"], {})
    both.split(variables["params"])


def test_average_of_trainable_leaves_only():
    _, abstract, plan, create, _ = setup("small_vit", 32, "head", ema_decay=0.9)
    state, _ = jax.eval_shape(create, abstract)
    assert set(tree.flatten(state.ema["params"])) == set(plan.trainable)


def stepped(**options):
    """(params before, anchor, head after one SGD step with some options, metrics)."""
    model = build("small_vit", 5, image_size=32)
    variables = initial()
    abstract = jax.eval_shape(lambda: variables)
    plan = resolve("head", model.stages, abstract["params"], {})
    config = default().optimizer
    config.update({"name": "sgd", "momentum": 0.0, "learning_rate": 0.1, "schedule": "constant"})
    tx = make_optimizer(config, make_rates(config, Phase(plan), 0, 10))
    step = make_train_step(
        plan.adapt(model), TASK, plan, tx,
        InputPipeline(scaled), **options,
    )  # fmt: skip
    # The start differs from the anchor, so that the pull towards the anchor is not zero.
    start = variables["params"]["head"]
    moved = {**variables["params"], "head": jax.tree.map(lambda x: x + 0.01, start)}
    state, frozen = state_lib.create(
        {**variables, "params": moved}, plan, tx, hyper_parameters(config, plan), seed=0,
        ema=False, anchor={"head": {"kernel": start["kernel"]}},
    )  # fmt: skip
    new, metrics = jax.jit(step)(state, frozen, batch_of(32))
    return moved, start, new.params["head"], metrics


def test_sharpness_aware_minimisation_is_its_formula():
    rho = 0.05
    params, _, found, metrics = stepped(sam_rho=rho)

    def loss(head):
        return loss_of({**params, "head": head}, batch_of(32))

    g = jax.grad(loss)(params["head"])
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g)))
    there = jax.tree.map(lambda w, x: w + rho * x / norm, params["head"], g)
    sharp = jax.grad(loss)(there)
    for name, leaf in found.items():
        np.testing.assert_allclose(
            leaf, params["head"][name] - 0.1 * sharp[name], rtol=1e-5, atol=1e-7
        )
        assert np.abs(sharp[name] - g[name]).max() > 1e-4
    np.testing.assert_allclose(metrics["loss"], loss(params["head"]), rtol=1e-5)


def test_l2_sp_is_its_formula():
    alpha, beta = 0.3, 0.7
    params, start, found, _ = stepped(l2_sp=alpha, l2_sp_head=beta)

    def loss(head):
        # The kernel has a pretrained value, the bias has none.
        penalty = alpha / 2 * jnp.sum((head["kernel"] - start["kernel"]) ** 2)
        penalty += beta / 2 * jnp.sum(head["bias"] ** 2)
        return loss_of({**params, "head": head}, batch_of(32)) + penalty

    g = jax.grad(loss)(params["head"])
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, params["head"][name] - 0.1 * g[name], rtol=1e-5, atol=1e-7)

"""The train step and the optimizer against formulas written out, and against optax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import TASK, batch_of, scaled

from finetune_jax import tree
from finetune_jax.config import default
from finetune_jax.data.augment import InputPipeline
from finetune_jax.models import initialise
from finetune_jax.models.vit import ViT
from finetune_jax.schemes import Phase, resolve
from finetune_jax.training import state as state_lib
from finetune_jax.training.optimizer import hyper_parameters, make_optimizer, make_rates
from finetune_jax.training.phase_optimizer import make_phase_optimizer
from finetune_jax.training.step import make_loss, make_train_step

MODEL = ViT(width=8, depth=2, heads=2, patch=16, num_classes=5)


@pytest.fixture(scope="module")
def params():
    """Params of a ViT of two small blocks, with a head that is not zero."""
    abstract = jax.eval_shape(lambda key: initialise(MODEL, 32, key), jax.random.key(0))["params"]
    generator = np.random.default_rng(0)
    return tree.map_with_path(
        lambda path, x: jnp.asarray(0.3 * generator.standard_normal(x.shape), jnp.float32), abstract
    )


def plan_of(params, scheme):
    return resolve(scheme, MODEL.stages, params, {})


def settings_of(**changes):
    config = default().optimizer
    config.update({"schedule": "constant", "momentum": 0.0, "learning_rate": 0.1, **changes})
    return config


def noise(key, inputs, batch):
    """An augmentation that makes the loss depend on the key alone."""
    return inputs + jax.random.normal(key, (1, 1, 1, 3)), batch


def open_step(params, scheme, pipeline, settings, **options):
    """(jitted train step, state, frozen half, plan)."""
    plan = plan_of(params, scheme)
    tx = make_optimizer(settings, make_rates(settings, Phase(plan), 0, 10))
    step = make_train_step(plan.adapt(MODEL), TASK, plan, tx, pipeline, **options)
    state, frozen = state_lib.create(
        {"params": params, "batch_stats": {}},
        plan,
        tx,
        hyper_parameters(settings, plan),
        seed=0,
        ema=options.get("ema_decay", 0) > 0,
    )
    return jax.jit(step), state, frozen, plan


def assert_close(found, expected, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-7, **tolerance}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


@pytest.mark.parametrize("decay", [0.15, 0.9])
def test_the_average_is_its_formula(params, decay):
    step, state, frozen, _ = open_step(
        params, "head", InputPipeline(scaled), settings_of(), ema_decay=decay
    )
    expected = {"params": state.params, "stats": {}}
    used = []
    for number in range(4):
        state, _ = step(state, frozen, batch_of(32, seed=number))
        used.append(min(decay, (1 + number) / (10 + number)))
        expected = jax.tree.map(
            lambda average, new, d=used[-1]: d * average + (1 - d) * new,
            expected,
            {"params": state.params, "stats": {}},
        )
        assert_close(state.ema, expected)
        # The average differs from the weights by so much that the test distinguishes the two.
        kernels = (state.ema["params"]["head"]["kernel"], state.params["head"]["kernel"])
        assert np.abs(kernels[0] - kernels[1]).max() > 1e-4
        found = state_lib.variables(state, frozen)["params"]["head"]
        assert_close(found, state.ema["params"]["head"])
    assert used[:2] == [0.1, min(decay, 2 / 11)] and (used[-1] == decay) == (decay < 0.2)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_every_step_and_every_micro_batch_has_its_own_key(params, accumulate):
    """At a rate of 0 only the key makes losses differ; all examples of the batch are equal."""
    pipeline = InputPipeline(scaled, noise)
    step, state, frozen, plan = open_step(
        params, "head", pipeline, settings_of(learning_rate=0.0), accumulate=accumulate
    )
    one = batch_of(32, 1)
    batch = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), one)
    loss = jax.jit(make_loss(plan.adapt(MODEL), TASK, plan, pipeline))
    found = []
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(0), number)
        keys = [key] if accumulate == 1 else [jax.random.fold_in(key, i) for i in range(accumulate)]
        losses = [float(loss(state.params, {}, state.hyper, frozen, one, k)[0]) for k in keys]
        state, metrics = step(state, frozen, batch)
        np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
        found += losses
    assert len({round(x, 4) for x in found}) == len(found)


def test_accumulation_averages_gradients_and_metrics(params):
    """Of micro-batches that differ, before the norm is logged and clipped."""
    batch = batch_of(32, 8)
    results = []
    for accumulate in (1, 4):
        step, state, frozen, _ = open_step(
            params,
            "head",
            InputPipeline(scaled),
            settings_of(clip_norm=0.1),
            accumulate=accumulate,
        )
        new, metrics = step(state, frozen, batch)
        results.append((new.params, metrics))
        assert float(metrics["grad_norm"]) > 0.2
        move = optax.global_norm(jax.tree.map(jnp.subtract, new.params, state.params))
        np.testing.assert_allclose(move, 0.1 * 0.1, rtol=1e-4)
    assert_close(results[1], results[0])


def gradients_of(params, scale=1.0, count=4):
    """Gradients of a head, different in every step."""
    generator = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda x: jnp.asarray(scale * generator.standard_normal(x.shape), jnp.float32),
            {"head": params["head"]},
        )
        for _ in range(count)
    ]


def updated(transformation, gradients, head, extra=dict):
    """Heads after each update; `extra` gives the extra arguments of the n-th update."""
    state, heads = transformation.init(head), []
    for number, gradient in enumerate(gradients):
        options = extra(number) if extra is not dict else {}
        updates, state = transformation.update(gradient, state, head, **options)
        head = optax.apply_updates(head, updates)
        heads.append(head)
    return heads


@pytest.mark.parametrize("scale", [1.0, 1e-7])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sgd"},
        {"name": "sgd", "momentum": 0.8},
        {"name": "sgd", "momentum": 0.8, "nesterov": True},
        {"name": "sgd", "momentum": 0.8, "weight_decay": 0.3, "clip_norm": 0.5},
        {"name": "adamw"},
        {"name": "adamw", "b1": 0.6, "b2": 0.9},
        {"name": "adamw", "b1": 0.6, "b2": 0.9, "weight_decay": 0.3, "clip_norm": 0.5},
    ],
    ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()),
)
def test_optimizers_are_those_of_optax(params, settings, scale):
    """With small gradients too, where the epsilon of Adam (1e-8) counts."""
    config = settings_of(**settings)
    plan = plan_of(params, "head")
    ours = make_optimizer(config, make_rates(config, Phase(plan), 0, 10))
    hyper = hyper_parameters(config, plan)
    mask = {"head": {"kernel": True, "bias": False}}
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.name == "sgd":
        decay = optax.add_decayed_weights(config.weight_decay, mask)
        rule = optax.sgd(0.1, config.momentum or None, config.nesterov)
        reference = optax.chain(clip, decay, rule)
    else:
        rule = optax.adamw(
            0.1, config.b1, config.b2, eps=1e-8, weight_decay=config.weight_decay, mask=mask
        )
        reference = optax.chain(clip, rule)
    head, gradients = {"head": params["head"]}, gradients_of(params, scale)
    found = updated(ours, gradients, head, lambda n: {"step": jnp.asarray(n), "hyper": hyper})
    moved = optax.global_norm(jax.tree.map(jnp.subtract, found[-1], head))
    start = jax.tree.map(np.zeros_like, head)
    for ours_now, theirs in zip(found, updated(reference, gradients, head), strict=True):
        difference = jax.tree.map(lambda a, b: (a - b) / moved, ours_now, theirs)
        assert_close(difference, start, atol=1e-3 if scale < 1 else 1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("default_decay", [0.0, 0.3])
def test_a_group_has_its_own_decay(params, name, default_decay):
    """In place of the run's, 0 included; biases do not decay in any group."""
    rules = (
        "[('head/.*', 'own(decay=0.7)'), ('block_1/attn/.*', 'none(decay=0.0)'), "
        "('block_1/.*', 'plain'), ('.*', 'frozen')]"
    )
    plan = plan_of(params, rules)
    config = settings_of(name=name, weight_decay=default_decay)
    tx = make_optimizer(config, make_rates(config, Phase(plan), 0, 10))
    bare = settings_of(name=name)
    without = plan_of(params, rules.replace("0.7", "0.0"))
    reference = make_optimizer(bare, make_rates(bare, Phase(without), 0, 10))
    trainable, _ = plan.split(params)
    gradients = jax.tree.map(jnp.ones_like, trainable)

    def updates(transformation, settings):
        hyper = hyper_parameters(settings, plan)
        state = transformation.init(trainable)
        found, _ = transformation.update(
            gradients, state, trainable, step=jnp.asarray(0), hyper=hyper
        )
        return tree.flatten(found)

    found, expected, weights = (
        updates(tx, config),
        updates(reference, bare),
        tree.flatten(trainable),
    )
    decays = {leaf.path: leaf.decays for leaf in plan.leaves}
    strengths = {"own": 0.7, "none": 0.0, "plain": default_decay}
    groups = tree.flatten(plan.of_trainable("group"))
    assert {groups[path] for path in found if decays[path]} == set(strengths)
    for path, update in found.items():
        strength = strengths[groups[path]] * decays[path]
        assert_close(update, expected[path] - 0.1 * strength * weights[path], atol=1e-6)
    assert decays["head/kernel"] and not decays["head/bias"]


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("phase_warmup", [None, 0, 2])
def test_warm_up_is_the_runs_in_the_first_phase_and_the_phases_own_in_later_ones(
    params, start, phase_warmup
):
    rules = "[('head/kernel', 'slow(warmup=5)'), ('head/bias', 'plain'), ('.*', 'frozen')]"
    config = settings_of(warmup_steps=4)
    plan = plan_of(params, rules)
    phase = Phase(plan, warmup=phase_warmup, lr=2.0)
    rates = make_rates(config, phase, start, 10)
    hyper = hyper_parameters(config, plan)
    warmup = phase_warmup if phase_warmup is not None else (4 if start == 0 else 0)
    for step in range(8):
        found = rates(jnp.asarray(start + step), hyper)["head"]
        plain = min(1.0, step / warmup) if warmup else 1.0
        np.testing.assert_allclose(found["bias"], 2 * 0.1 * plain, rtol=1e-6)
        np.testing.assert_allclose(found["kernel"], 2 * 0.1 * min(1.0, step / 5), rtol=1e-6)


def marked(state):
    """An optimizer state whose values all differ, so that an exchange of leaves is noticed."""
    leaves, structure = jax.tree.flatten(state)
    numbered = [jnp.full_like(x, number + 1) for number, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, numbered)


def moments_of(state):
    """({(field, leaf path): value}, {leaf path: step count of its group}) of an optimizer state."""
    values, counts = {}, {}
    for masked in state.inner_states.values():
        inner = masked.inner_state._asdict()
        count = inner.pop("count", None)
        for field, nested in inner.items():
            for path, value in tree.flatten(nested).items():
                if not isinstance(value, optax.MaskedNode):
                    values[field, path] = np.asarray(value)
                    counts[path] = None if count is None else int(count)
    return values, counts


def assert_carried(found, old, fresh, kept):
    """`found` is `old` at the leaves of which `kept` holds, and `fresh` at all others."""
    values, counts = moments_of(found)
    before, before_counts = moments_of(old)
    other, other_counts = moments_of(fresh)
    assert values.keys() == other.keys()
    seen = set()
    for field, path in values:
        source = before if kept(path) else other
        np.testing.assert_array_equal(values[field, path], source[field, path])
        assert counts[path] == (before_counts if kept(path) else other_counts)[path], path
        seen.add(kept(path))
    return seen


def open_phases(params, texts, **settings):
    """(optimizers of phases, fresh optimizer state of each) of some (scheme, whether to reset)."""
    config = default()
    config.optimizer.update(settings)
    phases = [Phase(plan_of(params, text), reset=reset) for text, reset in texts]
    found = [make_phase_optimizer(config, phases, i, 10 * i, 10) for i in range(len(phases))]
    return found, [x.transformation.init(x.plan.split(params)[0]) for x in found]


@pytest.mark.parametrize("settings", [{"name": "adamw"}, {"name": "sgd", "momentum": 0.9}])
def test_moments_move_to_the_next_phase_leaf_by_leaf_and_field_by_field(params, settings):
    (first, second), (old, new) = open_phases(
        params,
        [("stages('block_0') + head", False), ("stages('block_1') + head", False)],
        **settings,
    )
    old = marked(old)
    carried = second.carry(first, old, new)
    seen = assert_carried(carried, old, new, lambda path: path.startswith("head/"))
    assert seen == {True, False}
    values, _ = moments_of(old)
    assert len({float(x.flat[0]) for x in values.values()}) == len(values)


@pytest.mark.parametrize("settings", [{"name": "adamw"}, {"name": "sgd", "momentum": 0.9}])
def test_moments_move_across_two_boundaries(params, settings):
    """Each under the label of the phase that its leaf joined in."""
    (first, second, third), states = open_phases(
        params, [("head", False), ("last_k(1)", False), ("full", False)], **settings
    )
    paths = ("head/bias", "block_1/norm1/scale", "block_0/norm1/scale")
    assert [third.joined[path] for path in paths] == [0, 1, 2]
    start = marked(states[0])
    carried = second.carry(first, start, states[1])
    assert_carried(carried, start, states[1], lambda path: path.startswith("head/"))
    middle = marked(carried)
    last = third.carry(second, middle, states[2])
    seen = assert_carried(last, middle, states[2], lambda path: path in second.joined)
    assert seen == {True, False}
    _, counts = moments_of(last)
    if settings["name"] == "adamw":
        assert len({counts[path] for path in paths}) == 3


def test_a_reset_and_a_phase_of_rest_start_moments_afresh(params):
    (first, second), (old, new) = open_phases(
        params, [("head", False), ("head", True)], name="adamw"
    )
    assert set(second.joined.values()) == {1}
    carried = second.carry(first, marked(old), new)
    assert assert_carried(carried, old, new, lambda path: False) == {False}
    (_, second, third), states = open_phases(
        params, [("last_k(1)", False), ("head", False), ("last_k(1)", False)], name="adamw"
    )
    assert (third.joined["block_1/norm1/scale"], third.joined["head/bias"]) == (2, 0)
    middle = marked(states[1])
    carried = third.carry(second, middle, states[2])
    seen = assert_carried(carried, middle, states[2], lambda path: path.startswith("head/"))
    assert seen == {True, False}


def test_clipping_comes_before_decay_and_covers_the_trainable_half_alone(params):
    """Whatever the frozen half is, and however large its weights are."""
    settings = settings_of(clip_norm=0.05, weight_decay=0.2)
    large = {
        **params,
        "head": params["head"],
        "block_0": jax.tree.map(lambda x: 3 * x, params["block_0"]),
    }
    step, state, frozen, plan = open_step(large, "head", InputPipeline(scaled), settings)
    loss = make_loss(plan.adapt(MODEL), TASK, plan, InputPipeline(scaled))
    key = jax.random.fold_in(jax.random.key(0), 0)
    batch = batch_of(32)
    gradient = jax.grad(lambda p: loss(p, {}, state.hyper, frozen, batch, key)[0])(state.params)
    norm = optax.global_norm(gradient)
    new, metrics = step(state, frozen, batch)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert float(norm) > 0.1
    for name in ("kernel", "bias"):
        weight = state.params["head"][name]
        pull = gradient["head"][name] * 0.05 / norm + (0.2 * weight if name == "kernel" else 0.0)
        assert_close(new.params["head"][name], weight - 0.1 * pull)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_sam_perturbs_the_trainable_half_per_micro_batch(params, accumulate):
    rho = 0.5
    step, state, frozen, plan = open_step(
        params, "stages('block_1') + head", InputPipeline(scaled), settings_of(),
        sam_rho=rho, accumulate=accumulate,
    )  # fmt: skip
    loss = make_loss(plan.adapt(MODEL), TASK, plan, InputPipeline(scaled))
    batch = batch_of(32, 4)
    key = jax.random.fold_in(jax.random.key(0), 0)

    @jax.jit
    def sharp(part):
        def of(p):
            return loss(p, {}, state.hyper, frozen, part, key)[0]

        g = jax.grad(of)(state.params)
        there = jax.tree.map(lambda w, x: w + rho * x / optax.global_norm(g), state.params, g)
        return jax.grad(of)(there)

    parts = [jax.tree.map(lambda x, i=i: x[i::accumulate], batch) for i in range(accumulate)]
    grads = [sharp(part) for part in parts]
    mean = jax.tree.map(lambda *x: sum(x) / accumulate, *grads)
    new, _ = step(state, frozen, batch)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, state.params, mean)
    assert_close(new.params, expected, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_l2_sp_pulls_once_per_step(params, accumulate):
    """To the anchor where a leaf has one, else to 0, and not once per micro-batch."""
    settings = settings_of()
    step, state, frozen, _ = open_step(
        params, "head", InputPipeline(scaled), settings, l2_sp=0.3, l2_sp_head=0.7,
        accumulate=accumulate,
    )  # fmt: skip
    plain, *_ = open_step(params, "head", InputPipeline(scaled), settings, accumulate=accumulate)
    kernel = params["head"]["kernel"]
    frozen = dataclasses.replace(frozen, anchor={"head": {"kernel": kernel - 1.0}})
    batch = batch_of(32)
    new, metrics = step(state, frozen, batch)
    other, without = plain(state, frozen, batch)
    assert_close(metrics, without)
    pull = jax.tree.map(jnp.subtract, other.params["head"], new.params["head"])
    assert_close(pull["kernel"], 0.1 * 0.3 * jnp.ones_like(kernel), atol=1e-6)
    assert_close(pull["bias"], 0.1 * 0.7 * params["head"]["bias"], atol=1e-6)

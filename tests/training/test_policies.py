"""Policies: dropout of frozen stages, BatchNorm statistics, and the checkpoints that are kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import TASK, batch_of, config_of, scaled, setup, tensors

from finetune_jax import tree
from finetune_jax.config import default
from finetune_jax.data.augment import InputPipeline
from finetune_jax.data.batches import gather
from finetune_jax.errors import UserError
from finetune_jax.evaluation.batch_norm import reestimate
from finetune_jax.models import initialise
from finetune_jax.models.vit import ViT
from finetune_jax.pretrained import open_weights
from finetune_jax.schemes import Phase, resolve
from finetune_jax.setup import open_setup
from finetune_jax.training import state as state_lib
from finetune_jax.training.checkpoints import Checkpoints
from finetune_jax.training.loop import train
from finetune_jax.training.optimizer import hyper_parameters, make_optimizer, make_rates
from finetune_jax.training.step import make_train_step


def drawn(abstract):
    """Random variables with a head that is not zero, and unusual BatchNorm statistics."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        value = 0.2 * generator.standard_normal(leaf.shape, np.float32)
        return 1 + np.abs(value) if path.endswith(("scale", "var")) else value

    return {"batch_stats": {}, **tree.map_with_path(draw, abstract)}


@pytest.fixture(scope="module")
def vit():
    """(ViT of three blocks with dropout 0.5, its variables)."""
    model = ViT(width=32, depth=3, heads=2, patch=16, num_classes=5, dropout=0.5)
    return model, drawn(jax.eval_shape(lambda key: initialise(model, 32, key), jax.random.key(0)))


def plan_of(vit, scheme, policy):
    model, variables = vit
    return resolve(scheme, model.stages, variables["params"], {}, frozen_dropout=policy)


@pytest.mark.parametrize(("policy", "active"), [("eval", False), ("train", True)])
def test_dropout_of_frozen_stages_in_the_step_follows_the_policy(vit, policy, active):
    # The head has no dropout, so only the dropout of frozen stages depends on the key.
    model, variables = vit
    plan = plan_of(vit, "linear_probe", policy)
    config = default().optimizer
    tx = make_optimizer(config, make_rates(config, Phase(plan), 0, 10))
    step = jax.jit(make_train_step(plan.adapt(model), TASK, plan, tx, InputPipeline(scaled)))
    found = []
    for seed in (0, 1):
        hyper = hyper_parameters(config, plan)
        state, frozen = state_lib.create(variables, plan, tx, hyper, seed=seed, ema=False)
        new, metrics = step(state, frozen, batch_of(32))
        found.append((float(metrics["loss"]), np.asarray(new.params["head"]["bias"])))
    assert (found[0][0] != found[1][0]) == active
    assert (not np.array_equal(found[0][1], found[1][1])) == active
    # Without active dropout the features equal those of inference.
    logits = model.apply(variables, scaled(batch_of(32)))
    loss = TASK.per_example(logits, batch_of(32))["loss"].mean()
    assert np.isclose(found[0][0], float(loss), rtol=1e-5) != active


@pytest.mark.parametrize(("policy", "active"), [("eval", False), ("train", True)])
def test_dropout_of_trained_stages_is_active_whatever_the_policy(vit, policy, active):
    model, variables = vit
    plan = plan_of(vit, "last_k(1)", policy)
    images = scaled(batch_of(32))

    @jax.jit
    def features(key):
        """Activations entering the trained block, and leaving it."""
        options = {"rngs": {"dropout": key}}
        before = model.apply(variables, images, plan.mode, stop="block_2", **options)
        still = model.apply(variables, images, stop="block_2")
        after = model.apply(variables, still, plan.mode, start="block_2", stop="norm", **options)
        return before, after

    a, b = features(jax.random.key(0)), features(jax.random.key(1))
    assert (not np.array_equal(a[0], b[0])) == active
    assert not np.array_equal(a[1], b[1])


def test_the_dropout_policy_is_part_of_the_hash(vit):
    hashes = {plan_of(vit, "linear_probe", policy).hash for policy in ("eval", "train")}
    assert len(hashes) == 2


@pytest.fixture(scope="module")
def resnet():
    """(ResNet-20, its variables)."""
    model, abstract, *_ = setup("resnet8_cifar", 32, "linear_probe")
    return model, drawn(abstract)


def stem_output(variables, images):
    """The stem convolution's output, written without the model: f32[b, h, w, 16]."""
    kernel = np.asarray(variables["params"]["stem"]["conv"]["kernel"], np.float64)
    images = np.asarray(images, np.float64) / 255
    height, width = images.shape[1:3]
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def test_reestimated_statistics_are_those_of_the_images(resnet):
    model, variables = resnet
    batches = [batch_of(32, n=16, seed=seed) for seed in (0, 1, 2)]
    for images in (batches[:1], batches):
        new = reestimate(model, variables, images, scaled)["stem"]["norm"]
        outputs = [stem_output(variables, x["image"]) for x in images]
        mean = np.mean([x.mean((0, 1, 2)) for x in outputs], axis=0)
        var = np.mean([x.var((0, 1, 2)) for x in outputs], axis=0)
        np.testing.assert_allclose(new["mean"], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(new["var"], var, rtol=1e-4)


def test_reestimation_leaves_the_stages_it_is_not_given(resnet):
    model, variables = resnet
    images = [batch_of(32, n=16)]
    chosen = ("stem", "layer2_block0")
    new = reestimate(model, variables, images, scaled, chosen)
    everywhere = reestimate(model, variables, images, scaled)
    assert new.keys() == variables["batch_stats"].keys()
    for path, value in tree.flatten(variables["batch_stats"]).items():
        changed = not np.array_equal(value, tree.flatten(new)[path])
        assert changed == path.startswith(tuple(f"{s}/" for s in chosen)), path
    # The stem has the same input in both; later stages read outputs of stages that keep theirs.
    np.testing.assert_array_equal(new["stem"]["norm"]["mean"], everywhere["stem"]["norm"]["mean"])
    later = (x["layer2_block0"]["norm1"]["mean"] for x in (new, everywhere))
    assert not np.allclose(*later, rtol=1e-2)


def test_a_run_with_reestimation_keeps_new_statistics_over_frozen_weights(weights, tmp_path):
    config = config_of(weights, "linear_probe", batch_norm="reestimate", train__steps=3)
    setup = open_setup(config)
    train(setup, tmp_path / "run")
    with open_weights(weights) as file:
        base = {name: file.read(name) for name in file.names()}
    after = tensors(tmp_path / "run")
    for name, value in base.items():
        free = name.startswith(("params/head/", "batch_stats/"))
        assert (not np.array_equal(value, after[name])) == free, name
    # The batches have equal sizes and cover the split once, so their mean is that of the split.
    examples = setup.source.read(config.data.train)
    images = gather(examples, np.arange(len(examples)), setup.encode)
    normal = np.asarray(setup.preprocess.device(images))
    variables = tree.unflatten(base)
    mean = stem_output(variables, normal * 255).mean((0, 1, 2))
    np.testing.assert_allclose(after["batch_stats/stem/norm/mean"], mean, rtol=1e-4, atol=1e-5)


@pytest.fixture
def saved(resnet, tmp_path):
    """A function that writes one checkpoint per score and returns (`Checkpoints`, their state)."""
    _, _, plan, create, _ = setup("resnet8_cifar", 32, "linear_probe")
    state, _ = create(resnet[1])
    opened = []

    def save(scores, **options):
        checkpoints = Checkpoints(tmp_path / "checkpoints", [plan], **options)
        opened.append(checkpoints)
        for step, score in enumerate(scores, 1):
            at_step = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
            scored = score if score is None else {"accuracy": score, "loss": score}
            about = {"phase": 0, "base_fingerprint": "a" * 64}
            checkpoints.save(at_step, {}, about, scored)
        checkpoints.wait()
        return checkpoints, state

    yield save
    for checkpoints in opened:
        checkpoints.close()


def steps_in(folder):
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


@pytest.mark.parametrize(
    ("options", "best", "kept"),
    [
        ({"keep_last": 1, "keep_best": 1}, 2, {2, 6}),
        ({"keep_last": 3, "keep_best": 1}, 2, {2, 4, 5, 6}),
        ({"keep_last": 1, "keep_best": 2}, 2, {2, 4, 6}),
        ({"keep_last": 1, "keep_best": 1, "metric": "loss", "better": "min"}, 3, {3, 6}),
        ({"keep_last": 2, "keep_best": 2, "metric": "loss", "better": "min"}, 3, {1, 3, 5, 6}),
    ],
)
def test_the_last_and_the_best_are_kept(saved, tmp_path, options, best, kept):
    # Step 5 lies between two evaluations: it has no score and is no candidate for best.
    checkpoints, _ = saved([0.3, 0.9, 0.1, 0.8, None, 0.4], **options)
    assert checkpoints.latest_step == 6
    assert checkpoints.best_step == best
    assert steps_in(tmp_path / "checkpoints") == kept


def test_a_checkpoint_over_a_changed_base_is_refused_with_both_fingerprints(saved):
    checkpoints, state = saved([0.5])
    with pytest.raises(UserError, match="a{12}.*b{12}"):
        checkpoints.restore(state, {}, "b" * 64)
    restored, modified = checkpoints.restore(state, {}, "a" * 64)
    assert int(restored.step) == 1 and modified == {}
    flat = tree.flatten(restored.params)
    for path, value in tree.flatten(state.params).items():
        np.testing.assert_array_equal(value, flat[path])


@pytest.mark.parametrize("field", ["params", "opt_state"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), "expected bfloat16.*found float32"),
        (lambda x: jax.ShapeDtypeStruct((*x.shape[:-1], 3), x.dtype), "expected float32.*3]"),
    ],
)
def test_a_checkpoint_of_another_shape_or_dtype_is_refused(saved, field, change, message):
    checkpoints, state = saved([0.5])
    target = dataclasses.replace(state, **{field: jax.tree.map(change, getattr(state, field))})
    with pytest.raises(UserError, match=f"does not fit: state/{field}.*{message}"):
        checkpoints.restore(target, {}, "a" * 64)


def test_without_dropout_the_policy_costs_no_cached_prefix(weights):
    setup = open_setup(config_of(weights, "head", frozen_dropout="train"))
    assert setup.plan.prefix == setup.model.stages[:-1]

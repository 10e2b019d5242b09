"""Checks that the tests of all convolutional families share."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.deltas import Adapted
from finetune_jax.models import MODELS, StagedModel, build, initialise
from finetune_jax.pretrained import map_of
from finetune_jax.schemes import resolve_phases


def abstract(model: StagedModel, size: int = 32):
    """The variables as shape structs."""
    return jax.eval_shape(lambda key: initialise(model, size, key), jax.random.key(0))


def draw(model: StagedModel, size: int = 32):
    """Random variables without constant leaves, drawn without compiling an initialiser."""
    generator = np.random.default_rng(0)

    def one(leaf):
        noise = generator.normal(size=leaf.shape).astype(np.float32)
        if leaf.ndim < 2:
            return np.abs(1 + 0.1 * noise)
        return noise / math.sqrt(math.prod(leaf.shape[:-1]))

    return jax.tree.map(one, abstract(model, size))


def check_parts(model: StagedModel, size: int = 32) -> None:
    """The stages are the top-level keys, and running in two parts equals running through."""
    variables = draw(model, size)
    assert set(variables["params"]) == set(model.stages)
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    run = jax.jit(model.apply, static_argnames=("start", "stop"))
    whole = np.asarray(run(variables, images))
    assert np.isfinite(whole).all() and np.ptp(whole) > 0
    stage = model.stages[len(model.stages) // 2]
    again = run(variables, run(variables, images, stop=stage), start=stage)
    np.testing.assert_allclose(again, whole, atol=1e-5 * np.abs(whole).max())
    features, head = run(variables, images, stop="head"), variables["params"]["head"]
    again = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(again, whole, atol=1e-5 * np.abs(whole).max())


def check_bfloat16(model: StagedModel, size: int = 32) -> None:
    """Activations in bfloat16, parameters and logits in f32."""
    half = model.clone(dtype=jnp.bfloat16)
    variables = abstract(half, size)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def dtype(stop: str | None) -> np.dtype:
        return jax.eval_shape(functools.partial(half.apply, stop=stop), variables, images).dtype

    assert dtype(model.stages[1]) == jnp.bfloat16
    assert dtype("head") == dtype(None) == jnp.float32


def check_names(family: str, origin: str, model: StagedModel, size: int = 32) -> None:
    """Every leaf has a name in the origin that maps back to the leaf, or is a constant."""
    names = map_of(family, origin)
    for leaf in tree.flatten(abstract(model, size)):
        source = names.source(leaf)
        if source is None:
            assert names.constant(leaf), leaf
        else:
            assert leaf in [target.leaf for target in names.targets(source)], (leaf, source)


def check_schemes(model: StagedModel, schemes: dict[str, set[str]], size: int = 32) -> None:
    """Each scheme resolves and trains leaves of exactly these stages, and its model runs."""
    variables = abstract(model, size)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    for scheme, stages in schemes.items():
        (phase,) = resolve_phases(
            scheme, model.stages, variables["params"], variables["batch_stats"]
        )
        assert {path.split("/")[0] for path in phase.plan.trainable} == stages, scheme
        base = tree.flatten(variables["params"])
        added = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for delta in phase.plan.deltas
            for path, leaf in delta.leaves(base).items()
        }
        whole = {**variables, "params": tree.unflatten({**base, **added})}
        adapted = Adapted(model, tuple(phase.plan.deltas))
        assert jax.eval_shape(adapted.apply, whole, images).shape == (2, model.num_classes)


def parameters(name: str) -> int:
    """Number of parameters of a registered model with its published head."""
    entry = MODELS[name]
    model = build(name, entry.classes, image_size=entry.image_size)
    return tree.size(abstract(model, entry.image_size)["params"])

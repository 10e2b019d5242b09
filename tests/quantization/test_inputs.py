"""Layers whose inputs are rounded to 8 bits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from finetune_jax import tree
from finetune_jax.deltas import Adapted
from finetune_jax.deltas.adapted import largest_inputs
from finetune_jax.models import build, initialise
from finetune_jax.quantization import (
    FORMATS,
    STEPS,
    input_scales,
    is_weight,
    quantize,
    quantize_leaf,
    round_inputs,
)


def values(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_a_dense_layer_computes_what_the_product_of_integers_of_qwix_does():
    x, kernel = values((6, 64)), values((64, 10), 1)
    leaf = quantize_leaf("head/kernel", kernel, FORMATS["w8a8"])
    codes = qwix.QArray(leaf["w8a8"], leaf["scale"], qtype=jnp.int8)
    inputs = qwix.quantize(x, jnp.int8, channelwise_axes=[0])
    expected = qwix.dot_general(inputs, codes, (((1,), (0,)), ((), ())))
    ours = round_inputs(nn.Dense(10), x, None) @ qwix.dequantize(codes)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(ours - x @ qwix.dequantize(codes)).max() > 1e-3


def test_a_convolution_computes_what_that_of_integers_of_qwix_does():
    x, kernel = values((3, 8, 8, 4)), values((3, 3, 4, 5), 1)
    leaf = quantize_leaf("conv/kernel", kernel, FORMATS["w8a8"])
    codes = qwix.QArray(leaf["w8a8"], leaf["scale"], qtype=jnp.int8)
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = qwix.conv_general_dilated(
        qwix.quantize(x, jnp.int8, channelwise_axes=[0]), codes, (1, 1), "SAME",
        dimension_numbers=numbers,
    )  # fmt: skip
    ours = jax.lax.conv_general_dilated(
        round_inputs(nn.Conv(5, (3, 3)), x, None), qwix.dequantize(codes), (1, 1), "SAME",
        dimension_numbers=numbers,
    )  # fmt: skip
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_static_scales_give_the_nearest_of_256_values_and_the_gradient_of_the_inputs():
    x = jnp.linspace(-3, 3, 61)
    scale = jnp.float32(2 / STEPS)
    rounded = round_inputs(nn.Dense(1), x, scale)
    inside = jnp.abs(x) < 1.99
    assert (jnp.abs(rounded - x)[inside] <= scale / 2 * 1.001).all()
    assert float(rounded.max()) == pytest.approx(2 * 127 / 127.5)
    assert (jax.grad(lambda x: round_inputs(nn.Dense(1), x, scale).sum())(x) == 1).all()
    tokens = jnp.arange(4)
    assert round_inputs(nn.Embed(4, 2), tokens, None) is tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8_cifar", "small"])
def test_every_layer_with_a_weight_gets_rounded_inputs(name, monkeypatch):
    """No module reads its kernel without a call that the rounding sees."""
    if name == "small":
        name = "vit(width=24, depth=1, heads=3, patch=4)"
    model = build(name, 5, image_size=16)
    variables = initialise(model, 16, jax.random.key(0))
    flat = tree.flatten(variables["params"])
    formats = {path: FORMATS["w8a8"] for path, x in flat.items() if is_weight(path, x)}
    adapted = Adapted(model, formats=tuple(formats.items()))
    x = values((2, 16, 16, 3))
    seen = largest_inputs(Adapted(model), variables, x)
    modules = set(input_scales({}, formats.items()))
    assert modules == {path.rpartition("/")[0] for path in formats} and modules <= set(seen)
    # Weights that are rounded and weights that are codes give the same outputs.
    codes = {**variables, "params": quantize(variables["params"], formats)}
    assert set(input_scales(codes["params"])) == modules
    one, other = adapted.apply(variables, x), Adapted(model).apply(codes, x)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    weights_only = {p: FORMATS["int8"] for p in formats}
    plain = Adapted(model).apply(
        {**variables, "params": quantize(variables["params"], weights_only)}, x
    )
    features = lambda m, v: np.asarray(m.apply(v, x, stop="head"))  # noqa: E731
    assert not np.array_equal(features(adapted, variables), features(Adapted(model), variables))
    assert plain.shape == one.shape

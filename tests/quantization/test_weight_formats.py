"""Codes and scales: sizes, errors of rounding, and what a tree with quantized leaves gives back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.quantization import (
    FORMATS,
    dequantize,
    parse_format,
    quantize_leaf,
    quantized_leaves,
)
from finetune_jax.quantization.formats import _pack, _unpack

# Half of the largest distance between neighbouring values, as a fraction of the largest value.
ROUNDING = {"int8": 0.5 / 127.5, "fp8": 0.5 * 32 / 448, "int4": 0.5 / 7.5, "nf4": 0.152}
ROUNDING |= dict.fromkeys(("w8a8", "w8a8_static"), ROUNDING["int8"])


def weight_of(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("format_", FORMATS.values(), ids=str)
@pytest.mark.parametrize("shape", [(128, 63), (3, 3, 64, 32), (16, 16, 3, 48), (100, 10)])
def test_a_weight_comes_back_with_its_shape_within_the_rounding_of_the_format(format_, shape):
    weight = weight_of(shape)
    params = {"a": {"kernel": quantize_leaf("a/kernel", weight, format_), "bias": weight[0]}}
    assert list(quantized_leaves(params)) == ["a/kernel"]
    back = dequantize(params)["a"]
    assert back["bias"] is params["a"]["bias"]
    assert back["kernel"].shape == shape and back["kernel"].dtype == jnp.float32
    # The largest value that shares a scale with a weight is at most the largest of its column.
    largest = jnp.abs(weight).max(axis=tuple(range(len(shape) - 1)))
    assert (jnp.abs(back["kernel"] - weight) <= 1.01 * ROUNDING[format_.name] * largest).all()


@pytest.mark.parametrize("format_", FORMATS.values(), ids=str)
def test_codes_have_the_bits_that_the_format_says(format_):
    leaf = quantize_leaf("a/kernel", weight_of((256, 64)), format_)
    codes = {name: x for name, x in leaf.items() if "scale" not in name}
    assert tree.nbytes(codes) == 256 * 64 * format_.bits // 8
    assert leaf["scale"].shape == (256 // format_.tile if format_.tile else 1, 64)


def test_a_table_of_embeddings_has_scales_for_each_row():
    table = weight_of((50, 64)) * jnp.logspace(-3, 3, 50)[:, None]
    leaf = quantize_leaf("word/embedding", table, FORMATS["int8"])
    assert leaf["scale"].shape == (50, 1)
    error = jnp.abs(dequantize({"embedding": leaf})["embedding"] - table)
    assert (error.max(1) <= 0.004 * jnp.abs(table).max(1)).all()


def test_a_leaf_that_would_not_be_smaller_is_kept():
    weight = weight_of((1, 8))
    assert quantize_leaf("a/kernel", weight, FORMATS["int8"]) is weight


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9), st.booleans())
def test_two_codes_of_four_bits_are_one_byte(values, signed):
    codes = np.array([values], np.int8) if signed else np.abs(np.array([values], np.int8))
    kind = jnp.int4 if signed else jnp.uint4
    packed = _pack(jnp.asarray(codes).astype(kind))
    assert packed.dtype == jnp.uint8 and packed.shape == (1, (len(values) + 1) // 2)
    back = _unpack(packed, odd=len(values) % 2 == 1, signed=signed)
    assert (np.asarray(back.astype(jnp.int8)) == codes).all()


def test_a_program_makes_the_same_codes():
    for format_ in FORMATS.values():
        weight = weight_of((64, 33))
        ours = quantize_leaf("a/kernel", weight, format_)
        compiled = jax.jit(lambda w, f=format_: quantize_leaf("a/kernel", w, f))(weight)
        assert all((ours[name] == compiled[name]).all() for name in ours)


@pytest.mark.parametrize(
    "text, message",
    [
        ("int9", "Did you mean 'int8'"),
        ("int4(65)", "expected no argument but tile="),
        ("int4(tile=65)", "a multiple of 8"),
        ("int4(tiles=64)", "expected no argument but tile="),
        ("int8 + int4", "expected one of int8, fp8, int4, nf4"),
    ],
)
def test_another_format_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_format(text, "--how")


def test_formats_print_as_they_are_written():
    for text in ("int8", "nf4(tile=32)", "int8(tile=128)", "fp8"):
        assert str(parse_format(text, "--how")) == text

import jax
import numpy as np
import pytest
from conv_checks import (
    abstract,
    check_bfloat16,
    check_names,
    check_parts,
    check_schemes,
    draw,
    parameters,
)

from finetune_jax import tree
from finetune_jax.deltas import Adapted, LoRA, Sparse, merge, unmergeable
from finetune_jax.errors import UserError
from finetune_jax.models.bit import BiT, StdConv

SMALL = BiT((1, 1), 5, (16, 32), 8, groups=2)


def test_parts_make_the_whole():
    check_parts(SMALL)
    check_bfloat16(SMALL)


@pytest.mark.parametrize("origin", ["npz", "timm", "transformers"])
def test_names_map_to_leaves_and_back(origin):
    check_names("bit", origin, SMALL)


def test_published_parameter_counts():
    # timm counts of resnetv2_50x1_bit and resnetv2_152x4_bit.
    assert parameters("bit_r50x1") == 25_549_352
    assert parameters("bit_r152x4") == 936_533_224


def test_kernels_are_standardised_per_output():
    kernel = np.random.default_rng(0).normal(3, 2, (3, 3, 4, 6)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(1, 5, 5, 4)).astype(np.float32)
    module = StdConv(6, (3, 3), use_bias=False)
    found = module.apply({"params": {"kernel": kernel}}, x)
    axes = (0, 1, 2)
    whitened = (kernel - kernel.mean(axes)) / np.sqrt(kernel.var(axes) + 1e-10)
    expected = jax.lax.conv_general_dilated(
        x, whitened, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_border_of_the_pooling_is_zero():
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda v, x: SMALL.apply(v, x, stop="layer1_block0"))
    stem = np.asarray(run(draw(SMALL), x))
    assert stem.shape == (1, 8, 8, 8)
    # If the border were minus infinity, as in other ResNets, a maximum there could be negative.
    assert stem[:, 0].min() == stem[:, :, 0].min() == 0


def test_what_is_beside_a_standardised_kernel_is_not_merged():
    module = "layer1_block0/conv1"
    low_rank, sparse = LoRA(module, rank=2), Sparse(module, count=3)
    assert unmergeable(SMALL, [low_rank, sparse, LoRA("head")]) == [low_rank]
    base = tree.flatten(draw(SMALL)["params"])
    added = low_rank.initial(jax.random.key(0), base) | sparse.initial(jax.random.key(0), base)
    variables = {"params": tree.unflatten({**base, **added}), "batch_stats": {}}
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    adapted = Adapted(SMALL, (low_rank, sparse))
    assert jax.eval_shape(adapted.apply, variables, images).shape == (1, 5)
    with pytest.raises(UserError, match="standardises its kernel"):
        merge(adapted, variables)
    merged, _ = merge(Adapted(SMALL, (sparse,)), variables)
    assert f"{module}/lora_a" in tree.flatten(merged["params"])


def test_dropout_is_refused():
    with pytest.raises(ValueError, match="no dropout"):
        abstract(SMALL.clone(dropout=0.1))


def test_schemes():
    blocks = {"layer1_block0", "layer2_block0"}
    check_schemes(
        SMALL,
        {
            "last_k(1)": {"layer2_block0", "norm", "head"},
            "norm_only": {*blocks, "norm", "head"},
            "lora(rank=2)": {"stem", *blocks},
        },
    )

"""Properties of surgery at all sizes; parity tests compare surgery with other projects."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_jax import tree
from finetune_jax.models import initialise
from finetune_jax.models.staged import Resizable
from finetune_jax.models.vit import ViT
from finetune_jax.pretrained import load, save_as
from finetune_jax.pretrained.maps import maps_of
from finetune_jax.pretrained.surgery import (
    POSITION_METHODS,
    adapt_channels,
    fit,
    linear_weights,
    misfit,
    resize_patch,
    resize_positions,
)

ALL = dict.fromkeys(("position", "patch", "channels"), True)
sides = st.integers(1, 12)
methods = st.sampled_from(sorted(POSITION_METHODS))
quick = settings(max_examples=40, deadline=None)


def abstract(model, size):
    return jax.eval_shape(lambda key: initialise(model, size, key), jax.random.key(0))


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@quick
@given(sides, sides, methods)
def test_weights_of_a_resize_sum_to_one(old, new, method):
    weights = POSITION_METHODS[method](old, new)
    assert weights.shape == (new, old)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)


@quick
@given(sides, methods)
def test_the_same_size_changes_nothing(side, method):
    np.testing.assert_allclose(POSITION_METHODS[method](side, side), np.eye(side), atol=1e-12)


@quick
@given(sides, st.integers(2, 12), methods)
def test_left_and_right_are_treated_alike(old, new, method):
    weights = POSITION_METHODS[method](old, new)
    np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=1e-12)


@quick
@given(st.integers(2, 12), st.integers(2, 12))
def test_linear_positions_keep_a_slope_from_corner_to_corner(old, new):
    weights = POSITION_METHODS["linear_corners"](old, new)
    np.testing.assert_allclose(weights @ np.linspace(0, 1, old), np.linspace(0, 1, new), atol=1e-12)


@quick
@given(sides, sides, st.integers(0, 5), methods)
def test_positions_before_the_grid_stay_bit_for_bit(old, new, prefix, method):
    embedding = values(1, prefix + old**2, 3)
    resized, how = resize_positions(embedding, prefix + new**2, prefix, method)
    assert resized.shape == (1, prefix + new**2, 3) and resized.dtype == np.float32
    np.testing.assert_array_equal(resized[:, :prefix], embedding[:, :prefix])
    assert f"positions {old}x{old} to {new}x{new} by {method}" == how


@pytest.mark.parametrize(
    ("side", "how"), [(4, "0 for 1 position before the grid"), (6, "4x4 to 6x6")]
)
def test_positions_of_a_model_without_any_before_the_grid(side, how):
    embedding, leaf = values(1, 16, 3), Resizable("position", 1)
    wanted = (1, 1 + side**2, 3)
    assert misfit(embedding.shape, wanted, leaf, ALL) == ""
    resized, told = fit(embedding, wanted, leaf, "bicubic_torch")
    assert resized.shape == wanted and how in told
    assert not resized[:, 0].any()
    if side == 4:
        np.testing.assert_array_equal(resized[:, 1:], embedding)
    else:
        alone, _ = resize_positions(embedding, side**2, 0, "bicubic_torch")
        np.testing.assert_array_equal(resized[:, 1:], alone)


@quick
@given(st.integers(2, 7), st.integers(0, 6), st.integers(0, 6))
def test_enlarged_patches_give_the_tokens_that_they_gave_before(size, rows, columns):
    kernel, patch = values(size, size, 2, 3), values(size, size, 2, seed=1)
    new = (size + rows, size + columns)
    grown = np.einsum(
        "ai,bj,ijc->abc", linear_weights(size, new[0], corners=False),
        linear_weights(size, new[1], corners=False), patch,
    )  # fmt: skip
    before = np.einsum("ijc,ijcd->d", patch, kernel)
    after = np.einsum("ijc,ijcd->d", grown, resize_patch(kernel, new))
    np.testing.assert_allclose(after, before, atol=1e-4)


@quick
@given(st.integers(1, 4))
def test_repeated_channels_of_a_repeated_image_give_the_same_tokens(times):
    kernel, patch = values(4, 4, 3, 5), values(4, 4, 3, seed=1)
    more = adapt_channels(kernel, 3 * times)
    before = np.einsum("ijc,ijcd->d", patch, kernel)
    after = np.einsum("ijc,ijcd->d", np.tile(patch, (1, 1, times)), more)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_one_channel_takes_grey_images_for_coloured_ones():
    kernel, grey = values(4, 4, 3, 5), values(4, 4, 1, seed=1)
    before = np.einsum("ijc,ijcd->d", np.repeat(grey, 3, 2), kernel)
    after = np.einsum("ijc,ijcd->d", grey, adapt_channels(kernel, 1))
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
    ("found", "wanted", "leaf", "allowed", "expected"),
    [
        ((1, 18, 3), (1, 26, 3), Resizable("position", 1), ALL, "18 positions, 1 of them before"),
        ((1, 17, 3), (1, 26, 4), Resizable("position", 1), ALL, "only the number of positions"),
        ((1, 17, 3), (1, 26, 3), Resizable("position", 1), {}, "does not name 'position'"),
        ((8, 8, 3, 5), (8, 8, 3, 6), Resizable("kernel"), ALL, "only patch size and input"),
        ((8, 8, 3, 5), (9, 8, 3, 5), Resizable("kernel"), {}, "does not name 'patch'"),
        ((8, 8, 3, 5), (8, 8, 1, 5), Resizable("kernel"), {}, "does not name 'channels'"),
        ((1, 17, 3), (1, 26, 3), Resizable("position", 1), ALL, ""),
        ((8, 8, 3, 5), (9, 9, 1, 5), Resizable("kernel"), ALL, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_says_why(found, wanted, leaf, allowed, expected):
    reason = misfit(found, wanted, leaf, allowed)
    assert (expected in reason) if expected else not reason


def test_a_kernel_is_fitted_in_channels_and_size():
    fitted, how = fit(values(8, 8, 3, 5), (6, 6, 1, 5), Resizable("kernel"), "")
    assert fitted.shape == (6, 6, 1, 5) and fitted.dtype == np.float32
    assert "input channels adapted to 1" in how and "patch 8x8 to 6x6" in how
    assert math.isfinite(float(np.abs(fitted).max()))


# Keys' kernel with a = -3/4 at the distances 1/2 and 3/2; with a = -1/2 and a window that is twice
# as wide, at 1/4, 3/4, 5/4 and 7/4, before the weights are divided by their sum.
def test_positions_shrink_with_and_without_antialiasing():
    near, far = 0.59375, -0.09375
    np.testing.assert_allclose(
        POSITION_METHODS["bicubic_torch"](8, 4)[1], [0, far, near, near, far, 0, 0, 0], atol=1e-12
    )
    # The border pixel is repeated, so that its weight is the sum of those beyond the border.
    np.testing.assert_allclose(
        POSITION_METHODS["bicubic_torch"](4, 2)[0], [near + far, near, far, 0], atol=1e-12
    )
    wide = np.array([-0.0234375, -0.0703125, 0.2265625, 0.8671875])
    wide = np.concatenate([wide, wide[::-1]])
    np.testing.assert_allclose(
        POSITION_METHODS["bicubic_antialias"](16, 8)[4, 5:13], wide / wide.sum(), atol=1e-12
    )


def test_corners_keep_their_positions():
    weights = POSITION_METHODS["bicubic_torch_corners"](7, 13)
    np.testing.assert_allclose(weights[[0, 6, 12]], np.eye(7)[[0, 3, 6]], atol=1e-12)
    # Halfway between two samples: the kernel at the distances 1/2 and 3/2.
    expected = [0, 0, -0.09375, 0.59375, 0.59375, -0.09375, 0]
    np.testing.assert_allclose(weights[7], expected, atol=1e-12)


# How each origin's own code resizes position embeddings.
POSITIONS = {
    "native": "bicubic_antialias",
    "timm": "bicubic_antialias",
    "timm_fc_norm": "bicubic_antialias",
    "timm_distilled": "bicubic_antialias",
    "facebook": "bicubic_torch",
    "facebook_giant": "bicubic_torch",
    "facebook_registers": "bicubic_antialias",
    "facebook_registers_giant": "bicubic_antialias",
    "transformers": "bicubic_torch",
    "transformers_deit": "bicubic_torch",
    "transformers_dinov2": "bicubic_torch",
    "transformers_dinov2_giant": "bicubic_torch",
    "transformers_dinov2_with_registers": "bicubic_antialias",
    "transformers_dinov2_with_registers_giant": "bicubic_antialias",
    "transformers_clip": "bicubic_torch",
    "transformers_siglip": "bicubic_torch",
    "openai": "bicubic_antialias",
    "torchvision": "bicubic_torch_corners",
    "vit_jax": "linear_corners",
    "big_vision": "linear_corners",
    "big_vision_two_towers": "linear_corners",
}


def test_every_origin_resizes_as_its_own_code_does():
    assert {m.origin: m.position for m in maps_of("vit")} == POSITIONS


@pytest.mark.parametrize("origin", ["timm", "transformers", "vit_jax"])
def test_a_load_resizes_as_the_origin_does(tmp_path, origin):
    model = ViT(16, 1, 2, 8, 5)
    flat = {p: values(*x.shape) for p, x in tree.flatten(abstract(model, 64)).items()}
    path = tmp_path / "w.safetensors"
    save_as(path, tree.unflatten(flat), "vit", origin, model.sizes)
    smaller = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract(model, 32))
    loaded, manifest = load(path, "vit", smaller, model)
    assert manifest.origin == origin
    weights = POSITION_METHODS[POSITIONS[origin]](8, 4)
    grid = flat["params/stem/position_embedding"][0, 1:].reshape(8, 8, 16)
    expected = np.einsum("ai,bj,ijw->abw", weights, weights, grid).reshape(16, 16)
    found = loaded["params"]["stem"]["position_embedding"]
    np.testing.assert_allclose(found[0, 1:], expected, atol=1e-5)

"""Random choices of augmentations: probabilities, ranges, and strengths, on tiny images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_jax.data.augment import colour, geometry, parse_augment
from finetune_jax.data.augment.rand_augment import OPERATIONS, operate

COUNT = 2000
KEY = jax.random.key(7)
FILL = jnp.array([0.2, 0.3, 0.4])
TINY = jnp.tile(jax.random.uniform(KEY, (1, 2, 2, 3), minval=0.2, maxval=0.8), (COUNT, 1, 1, 1))
SIX = jax.random.uniform(KEY, (6, 8, 8, 3))


def draw(text, pixels=TINY, key=KEY):
    batch = {"label": jnp.arange(len(pixels))}
    return jax.jit(lambda k, x: parse_augment(text, FILL)(k, x, batch))(key, pixels)


def share_changed(text):
    return float((draw(text)[0] != TINY).any((1, 2, 3)).mean())


@pytest.mark.parametrize(
    ("text", "share"), [("flip", 0.5), ("grayscale(0.2)", 0.2), ("random_erasing(p=0.3)", 0.3)]
)
def test_an_image_is_changed_as_often_as_asked_for(text, share):
    # Five standard deviations of a mean of COUNT draws.
    assert abs(share_changed(text) - share) < 5 * np.sqrt(share * (1 - share) / COUNT)


def test_defaults_are_those_of_the_papers():
    assert abs(share_changed("grayscale") - 0.1) < 0.035
    assert abs(share_changed("random_erasing") - 0.5) < 0.06


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_of_colour_are_uniform_in_their_range(name):
    found, _ = draw(f"colour_jitter({name}=0.4)")
    change = getattr(colour, name)
    one = np.asarray(TINY[:1])
    # Changes are linear in the factor, up to clipping, which this range does not reach here.
    low, high = (np.asarray(change(one, jnp.array([factor])))[0, 0, 0, 0] for factor in (0.9, 1.1))
    factors = 0.9 + 0.2 * (np.asarray(found)[:, 0, 0, 0] - low) / (high - low)
    assert 0.6 <= factors.min() + 1e-3 < 0.62 and 1.38 < factors.max() - 1e-3 <= 1.4
    assert abs(factors.mean() - 1) < 0.03 and abs(factors.std() - 0.8 / np.sqrt(12)) < 0.02


def test_factors_are_never_negative():
    found, _ = draw("colour_jitter(brightness=3)")
    assert np.asarray(found).min() >= 0
    dark = (np.asarray(found) < 0.05).all((1, 2, 3)).mean()
    # Factors are in [0, 4]; if they began at -2, a third of the images would be black.
    assert dark < 0.1


def test_the_hue_turns_both_ways_up_to_its_range():
    red = jnp.tile(jnp.array([0.8, 0.2, 0.2]), (COUNT, 1, 1, 1))
    found = np.asarray(draw("colour_jitter(hue=0.1)", red)[0])[:, 0, 0]
    # Up to a sixth of the circle from red, one of green and blue rises by 0.6 per sixth.
    turns = (found[:, 1] - found[:, 2]) / 0.6 / 6
    assert -0.1 <= turns.min() + 1e-4 < -0.098 and 0.098 < turns.max() - 1e-4 <= 0.1
    assert abs(turns.mean()) < 0.01


def test_terms_have_keys_of_their_own():
    # With one key for both terms, two flips would always cancel.
    assert abs(share_changed("flip + flip") - 0.5) < 0.06
    both = np.asarray(draw("grayscale(0.5) + random_erasing(0.5)")[0])
    gray = np.ptp(both, axis=-1).max((1, 2)) < 1e-6
    first = np.asarray(draw("grayscale(0.5)")[0])
    assert (np.ptp(first, axis=-1).max((1, 2)) < 1e-6).mean() == pytest.approx(0.5, abs=0.06)
    assert 0.2 < gray.mean() < 0.5


def test_offsets_of_a_crop_are_uniform_from_one_edge_to_the_other():
    ramp = jnp.broadcast_to(jnp.arange(1.0, 4.0)[None, :, None, None], (COUNT, 3, 3, 3))
    found = np.asarray(draw("random_crop(pad=1)", ramp)[0])[:, 1, 1, 0]
    counts = np.bincount(found.astype(int), minlength=4)
    assert counts[0] == 0 and (abs(counts[1:] / COUNT - 1 / 3) < 0.06).all()


def test_an_erased_box_is_noise_of_its_own_per_image():
    erased = np.asarray(draw("random_erasing(p=1, area=(1, 1), ratio=(1, 1))")[0])
    assert erased.std(axis=0).min() > 0.25  # a uniform distribution has 0.29
    assert abs(erased.mean() - 0.5) < 0.01


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_draws_from_its_beta_distribution(alpha):
    _, batch = draw(f"mixup({alpha})", TINY[:, :1, :1])
    mix = np.asarray(batch["mix"])
    assert abs(mix.mean() - 0.5) < 0.05
    assert mix.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    np.testing.assert_array_equal(batch["label2"], np.roll(np.arange(COUNT), 1))


def test_defaults_of_mixing():
    mix = np.asarray(draw("mixup", TINY[:, :1, :1])[1]["mix"])
    assert mix.var() == pytest.approx(1 / (4 * 1.4), rel=0.1)


def test_a_box_of_cutmix_has_its_share_of_the_area():
    images = jnp.broadcast_to(jnp.arange(200.0)[:, None, None, None], (200, 12, 12, 3))
    # The distribution is so narrow that all draws are near its mean, 1/2: a side of
    # 12 / sqrt(2) = 8.49 pixels.
    mixed, batch = draw("cutmix(1e6)", images)
    assert 1 - np.asarray(batch["mix"]).min() == pytest.approx(8 * 8 / 144)
    other = np.asarray(mixed != images)[..., 0].mean((1, 2))
    np.testing.assert_allclose(other, 1 - batch["mix"], atol=1e-6)


def only(name, m, sign=1.0):
    chosen = jnp.full(6, OPERATIONS.index(name))
    return jax.jit(operate, static_argnums=3)(SIX, chosen, jnp.full(6, sign), m, FILL)


def affine(*rows):
    return geometry.warp(SIX, jnp.tile(jnp.array(rows), (6, 1, 1)), FILL)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "sign"), [(15, -1.0), (30, 1.0)])
def test_strengths_of_rand_augment(m, sign):
    part = sign * m / 30
    expected = {
        "rotate": geometry.warp(SIX, geometry.rotation(jnp.full(6, 30 * part), 8, 8), FILL),
        "shear_x": affine([1, 0.3 * part, 0], [0, 1, 0]),
        "shear_y": affine([1, 0, 0], [0.3 * part, 1, 0]),
        "translate_x": affine([1, 0, 8 * 150 / 331 * part], [0, 1, 0]),
        "translate_y": affine([1, 0, 0], [0, 1, 8 * 150 / 331 * part]),
        "posterize": colour.posterize(SIX, jnp.full(6, {15: 6, 30: 4}[m])),
        "solarize": colour.solarize(SIX, jnp.full(6, 1 - m / 30)),
        "identity": SIX,
        "autocontrast": colour.autocontrast(SIX),
        "equalize": colour.equalize(SIX),
        **{
            name: change(SIX, jnp.full(6, 1 + 0.9 * part))
            for name, change in {
                "colour": colour.saturation,
                "contrast": colour.contrast,
                "brightness": colour.brightness,
                "sharpness": colour.sharpness,
            }.items()
        },
    }
    assert expected.keys() == set(OPERATIONS)
    for name, images in expected.items():
        np.testing.assert_allclose(only(name, m, sign), images, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_rand_augment_draws_every_operation_and_both_signs():
    images = jnp.tile(SIX[:1], (400, 1, 1, 1))
    found = np.asarray(draw("rand_augment(1, 30)", images)[0])
    kinds = {
        (name, sign): np.asarray(only(name, 30, sign))[0]
        for name in OPERATIONS
        for sign in (1.0, -1.0)
    }
    counts = {
        kind: (abs(found - image).max((1, 2, 3)) < 1e-4).sum() for kind, image in kinds.items()
    }
    # 400 / 28 each, about 14; both signs of an operation without a direction are one result.
    assert min(counts.values()) >= 3
    twice = np.asarray(draw("rand_augment(2, 30)", images)[0])
    known = np.zeros(len(images), bool)
    for image in kinds.values():
        known |= abs(twice - image).max((1, 2, 3)) < 1e-4
    assert known.mean() < 0.5

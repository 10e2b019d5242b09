"""Augmentations: each by its definition, against Pillow where it has the operation."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from finetune_jax.config import default
from finetune_jax.data.augment import (
    canonical,
    check_targets,
    colour,
    make_input_pipeline,
    parse_augment,
)
from finetune_jax.data.augment.geometry import draw_boxes, random_resized_crop, rotation, warp
from finetune_jax.data.augment.rand_augment import OPERATIONS, operate
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup
from finetune_jax.tasks import Classification

KEY = jax.random.key(0, impl="unsafe_rbg")
PICTURES = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3), np.uint8)
PIXELS = jnp.asarray(PICTURES, jnp.float32) / 255
LABELS = jnp.arange(24) % 5
EVERY = (
    "flip", "random_crop(pad=2)", "random_resized_crop", "colour_jitter(0.4, 0.4, 0.4, 0.1)",
    "grayscale(0.5)", "random_erasing", "rand_augment(2, 9)", "mixup(1.0)", "cutmix(1.0)",
)  # fmt: skip


DRAW = jax.jit(draw_boxes, static_argnums=(1, 2, 3, 4, 5))


@functools.cache
def jitted(text):
    traced = []

    def apply(key, pixels, fill):
        traced.append(text)
        return parse_augment(text, fill)(key, pixels, {"label": jnp.arange(len(pixels)) % 5})

    return jax.jit(apply), traced


def run(text, key=KEY, pixels=PIXELS, fill=(0.5, 0.5, 0.5)):
    pixels, batch = jitted(text)[0](key, pixels, jnp.array(fill))
    return np.asarray(pixels), batch


def pillow(function):
    """Pillow's operation on the first pictures, and those as pixels."""
    return np.stack([np.asarray(function(Image.fromarray(p))) for p in PICTURES[:6]]) / 255


@pytest.mark.parametrize("text", EVERY)
def test_same_key_same_pixels_in_range_and_one_program(text):
    first, again = run(text)[0], run(text)[0]
    np.testing.assert_array_equal(first, again)
    others = [run(text, jax.random.key(i, impl="unsafe_rbg"))[0] for i in range(1, 4)]
    assert len(jitted(text)[1]) == 1
    assert all((other != first).any() for other in others)
    for pixels in (first, *others):
        assert pixels.shape == PIXELS.shape and pixels.dtype == jnp.float32
        assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    # Each image has its own draw.
    changed = np.abs(first - np.asarray(PIXELS)).reshape(len(PIXELS), -1).mean(1)
    assert len(set(np.round(changed, 5))) > (1 if text == "flip" else 3)


@pytest.mark.parametrize(
    "text",
    ["", "random_crop(pad=0)", "random_resized_crop(scale=(1, 1), ratio=(1, 1))", "colour_jitter",
     "grayscale(p=0)", "random_erasing(p=0)", "mixup(alpha=0)", "cutmix(alpha=0)"],
)  # fmt: skip
def test_no_strength_changes_nothing(text):
    pixels, batch = run(text)
    np.testing.assert_array_equal(pixels, PIXELS)
    assert (batch.get("mix", 1) == jnp.ones(())).all()


def test_an_operation_at_level_0_changes_nothing():
    own = [i for i, name in enumerate(OPERATIONS) if name not in ("autocontrast", "equalize")]
    chosen = jnp.array([*own, *own])
    signs = jnp.repeat(jnp.array([1.0, -1.0]), len(own))
    pixels = jnp.clip(PIXELS, 0, 0.99)  # from level 0 on, solarize inverts white itself
    out = jax.jit(operate, static_argnums=3)(pixels, chosen, signs, 0, jnp.full(3, 0.5))
    np.testing.assert_allclose(out, pixels, atol=1e-6)


@pytest.mark.parametrize("factor", [0.3, 1.7])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(colour.brightness, ImageEnhance.Brightness), (colour.contrast, ImageEnhance.Contrast),
     (colour.saturation, ImageEnhance.Color), (colour.sharpness, ImageEnhance.Sharpness)],
)  # fmt: skip
def test_blends_are_pillows(ours, theirs, factor):
    expected = pillow(lambda picture: theirs(picture).enhance(factor))
    # Pillow rounds to whole levels twice.
    found = jax.jit(ours)(PIXELS[:6], jnp.full(6, factor))
    np.testing.assert_allclose(found, expected, atol=2.1 / 255)


def test_operations_on_levels_are_pillows():
    six = PIXELS[:6]
    for bits in (1, 4, 8):
        expected = pillow(lambda picture, bits=bits: ImageOps.posterize(picture, bits))
        np.testing.assert_allclose(
            jax.jit(colour.posterize)(six, jnp.full(6, bits)), expected, atol=1e-6
        )
    expected = pillow(lambda picture: ImageOps.solarize(picture, 100))
    np.testing.assert_allclose(
        jax.jit(colour.solarize)(six, jnp.full(6, 99.5 / 255)), expected, atol=1e-6
    )
    expected = pillow(ImageOps.autocontrast)
    np.testing.assert_allclose(jax.jit(colour.autocontrast)(six), expected, atol=1.1 / 255)
    flat = jnp.full((1, 4, 4, 3), 0.3)
    np.testing.assert_array_equal(jax.jit(colour.autocontrast)(flat), flat)
    np.testing.assert_array_equal(jax.jit(colour.equalize)(flat), flat)
    expected = pillow(lambda picture: picture.convert("L"))
    np.testing.assert_allclose(colour.gray(six)[..., 0], expected, atol=0.6 / 255)


def test_equalize_is_pillows_on_a_picture_large_enough_for_a_histogram():
    noise = np.random.default_rng(1).normal(100, 30, (40, 50, 3)).clip(0, 255).astype(np.uint8)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(noise))) / 255
    found = jax.jit(colour.equalize)(jnp.asarray(noise[None], jnp.float32) / 255)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_hue_turns_and_value_and_saturation_stay():
    turns = 0.1
    out = np.asarray(jax.jit(colour.shift_hue)(PIXELS[:1], jnp.array([turns])))[0].reshape(-1, 3)
    for before, after in zip(np.asarray(PIXELS[0]).reshape(-1, 3), out, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*map(float, before))
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb((h + turns) % 1, s, v), atol=1e-5)


def test_boxes_have_the_area_and_proportions_asked_for():
    boxes = np.asarray(DRAW(KEY, 4000, 224, 224, (0.08, 1.0), (3 / 4, 4 / 3)))
    top, left, tall, wide = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + tall <= 224).all() and (left + wide <= 224).all()
    share = tall * wide / 224**2
    assert 0.075 < share.min() < 0.1 and share.max() > 0.9
    assert (wide / tall).min() > 0.73 and (wide / tall).max() < 1.36
    assert abs(np.log(wide / tall).mean()) < 0.02
    # Boxes that do not fit are drawn again, so the mean is below that of the range, 0.54.
    assert 0.45 < share.mean() < 0.54
    never = np.asarray(DRAW(KEY, 3, 10, 100, (1.0, 1.0), (1.0, 2.0)))
    np.testing.assert_array_equal(never, [[0, 40, 10, 20]] * 3)


def test_a_resized_crop_is_pillows_of_the_box():
    scale, ratio = (0.1, 0.8), (0.75, 1.33)
    boxes = np.asarray(DRAW(KEY, 24, 12, 12, scale, ratio))
    found = jax.jit(random_resized_crop(scale, ratio))(KEY, PIXELS, jnp.zeros(3))
    for picture, (top, left, tall, wide), after in zip(PICTURES, boxes, found, strict=True):
        box = tuple(int(v) for v in (left, top, left + wide, top + tall))
        expected = Image.fromarray(picture).crop(box).resize((12, 12), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(after, np.asarray(expected) / 255, atol=1.6 / 255)


def test_a_quarter_turn_and_a_shift_are_exact():
    quarter = jax.jit(lambda x: warp(x, rotation(jnp.full(24, 90.0), 12, 12), jnp.zeros(3)))(PIXELS)
    turned = [np.abs(quarter - np.rot90(PIXELS, k, (1, 2))).max() for k in (1, 3)]
    assert min(turned) < 1e-4
    shift = jnp.tile(jnp.array([[1.0, 0, 3], [0, 1, 0]]), (24, 1, 1))
    out = np.asarray(jax.jit(warp)(PIXELS, shift, jnp.full(3, 0.25)))
    np.testing.assert_allclose(out[:, :, :9], PIXELS[:, :, 3:], atol=1e-6)
    assert (out[:, :, 9:] == 0.25).all()


def test_a_crop_pads_with_the_fill():
    out, _ = run(
        "random_crop(pad=12)", pixels=jnp.zeros((24, 12, 12, 3)), fill=jnp.array([0.1, 0.2, 0.3])
    )
    outside = out[(out != 0).any(-1)]
    np.testing.assert_allclose(outside, np.tile([0.1, 0.2, 0.3], (len(outside), 1)), atol=1e-7)
    assert 0.3 < len(outside) / (24 * 144) < 0.9


@pytest.mark.slow
def test_shares_of_what_is_drawn_are_those_asked_for():
    many = jnp.tile(PIXELS[:1], (2000, 1, 1, 1))

    def changed(text):
        return (run(text, pixels=many)[0] != np.asarray(many)).any((1, 2, 3)).mean()

    assert abs(changed("grayscale(0.2)") - 0.2) < 0.03
    assert abs(changed("flip") - 0.5) < 0.04
    assert abs(changed("random_erasing(p=0.3)") - 0.3) < 0.04
    erased, _ = run("random_erasing(p=1, area=(0.25, 0.25), ratio=(1, 1))", pixels=many)
    assert abs((erased != np.asarray(many)).any(-1).mean() - 0.25) < 0.01
    factor, _ = run("colour_jitter(brightness=0.4)", pixels=jnp.full((2000, 2, 2, 3), 0.5))
    assert abs(factor.mean() - 0.5) < 0.01
    assert 0.29 < factor.min() < 0.31 and 0.69 < factor.max() < 0.71


def test_mixup_is_the_weighted_mean_with_the_image_before():
    out, batch = run("mixup(1.0)")
    own = batch["mix"][:, None, None, None]
    expected = own * PIXELS + (1 - own) * PIXELS[np.arange(24) - 1]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_array_equal(batch["label2"], LABELS[np.arange(24) - 1])


@pytest.mark.slow
def test_weights_of_mixup_are_beta_distributed():
    mix = np.asarray(run("mixup(0.2)", pixels=jnp.zeros((4000, 1, 1, 3)))[1]["mix"])
    assert abs(mix.mean() - 0.5) < 0.03
    # Beta(a, a) has the variance 1 / (4 (2 a + 1)).
    assert abs(mix.var() - 1 / (4 * 1.4)) < 0.01


def test_cutmix_counts_the_pixels_that_are_left():
    ramp = jnp.broadcast_to(jnp.arange(24.0)[:, None, None, None], (24, 12, 12, 3))
    out, batch = run("cutmix(1.0)", pixels=ramp)
    own = np.asarray(out[..., 0] == ramp[..., 0]).mean((1, 2))
    np.testing.assert_allclose(batch["mix"], own, atol=1e-6)
    other = np.where(np.asarray(out != ramp), np.asarray(out), np.asarray(ramp[np.arange(24) - 1]))
    np.testing.assert_array_equal(other, ramp[np.arange(24) - 1])
    assert 0.4 < own.mean() < 0.9


@pytest.mark.slow
def test_of_several_mixing_terms_one_is_drawn_per_step():
    text = "mixup(1.0) + cutmix(1.0)"
    kinds = set()
    for i in range(12):
        out, _ = run(text, key=jax.random.key(i, impl="unsafe_rbg"))
        both = (out != np.asarray(PIXELS)) & (out != np.asarray(PIXELS)[np.arange(24) - 1])
        kinds.add("mixup" if both.mean() > 0.5 else "cutmix")
    assert kinds == {"mixup", "cutmix"}


def test_the_loss_of_mixed_images_is_the_mean_of_both_classes():
    _, batch = run("mixup(1.0)")
    task = Classification(tuple("abcde"))
    logits = jax.random.normal(KEY, (24, 5))
    hyper = {"label_smoothing": 0.0}
    one = task.per_example(logits, {"label": batch["label"]}, hyper)["loss"]
    two = task.per_example(logits, {"label": batch["label2"]}, hyper)["loss"]
    expected = batch["mix"] * one + (1 - batch["mix"]) * two
    np.testing.assert_allclose(task.per_example(logits, batch, hyper)["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_pixels_augmented_before_normalising_are_normalised_pixels_augmented(channels):
    preprocess = ImagePreprocess(12, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), crop=0, channels=channels)
    batch = {"image": jnp.asarray(PICTURES)}
    text = "random_crop(pad=4) + flip"
    pipeline = make_input_pipeline(preprocess, text)
    found = jax.jit(lambda b: pipeline(KEY, b)[0])(batch)
    after = jax.jit(lambda b: parse_augment(text)(KEY, preprocess.device(b), b)[0])(batch)
    np.testing.assert_allclose(found, after, atol=1e-6)  # XLA fuses the two differently
    np.testing.assert_array_equal(
        preprocess.normalise(preprocess.pixels(batch)), preprocess.device(batch)
    )


def test_colours_are_distinguished_whatever_order_the_model_wants():
    rgb = ImagePreprocess(12, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), crop=0)
    bgr = ImagePreprocess(12, (0.6, 0.5, 0.4), (0.25, 0.3, 0.2), crop=0, channels="bgr")
    outs = []
    for preprocess in (rgb, bgr):
        batch = {"image": np.stack([preprocess.host({"image": p})["image"] for p in PICTURES])}
        pipeline = make_input_pipeline(preprocess, "colour_jitter(0, 0, 0.4, 0.1) + random_crop(2)")
        outs.append(jax.jit(pipeline)(KEY, batch)[0])
    np.testing.assert_allclose(outs[0], outs[1][..., ::-1], atol=1e-5)


def test_several_texts_are_one():
    assert canonical(["flip", "", " grayscale(0.2)"]) == "flip + grayscale(0.2)"
    np.testing.assert_array_equal(run(("flip", "grayscale"))[0], run("flip + grayscale")[0])
    config = default()
    config.data.augment = ["flip", "mixup(0.2)"]
    assert open_setup(config).config.data.augment == ["flip", "mixup(0.2)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flop", "Did you mean 'flip'"),
        ("flip(2)", "flip\\(2\\): too many positional"),
        ("random_crop", "missing a required argument: 'pad'"),
        ("random_crop(pad=-1)", "pad: expected a whole number >= 0, found -1"),
        ("random_resized_crop(scale=(0, 1))", "scale: expected two rising numbers above 0"),
        ("random_resized_crop(ratio=2)", "ratio: expected two rising numbers"),
        ("colour_jitter(hue=0.6)", "hue: expected a number of at least 0 and at most 0.5"),
        ("colour_jitter(brightness='x')", "brightness: expected a number"),
        ("grayscale(2)", "p: expected a number in \\[0, 1\\], found 2"),
        ("random_erasing(area=(0.5, 0.2))", "area: expected two rising numbers"),
        ("rand_augment(0)", "n: expected a whole number of at least 1"),
        ("rand_augment(m=31)", "m: expected a number of at least 0 and at most 30"),
        ("mixup(-1)", "alpha: expected a number"),
        ("mixup + flip", "expected the terms that mix images at the end"),
    ],
)
def test_a_bad_augmentation_is_refused(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_augment(text)
    assert str(error.value).startswith("data.augment")


def test_mixing_needs_one_class_per_image_and_masks_need_still_pixels():
    number = {"label": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(UserError, match="need one class per image"):
        check_targets("mixup", number)
    mask = {"class_map": jax.ShapeDtypeStruct((1, 8, 8), jnp.uint8)}
    with pytest.raises(UserError, match="flip moves the pixels"):
        check_targets("grayscale + flip", mask)
    check_targets("grayscale", mask)


@pytest.mark.parametrize(
    "text", ["random_crop(pad=2)", "random_resized_crop", "rand_augment(2, 9)"]
)
def test_image_after_image_is_the_same_as_all_at_once(text, monkeypatch):
    found = []
    for count in (1, 2):
        monkeypatch.setattr(jax, "device_count", lambda count=count: count)
        pixels, _ = jax.jit(lambda key, pixels: parse_augment(text, 0.5)(key, pixels, {}))(
            KEY, PIXELS
        )
        found.append(pixels)
    # Places of pixels are rounded in another order.
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5)

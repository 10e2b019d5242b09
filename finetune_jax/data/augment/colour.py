"""Transforms of colour: jitter, grayscale, and the colour operations of RandAugment.

Images are f32[b, h, w, 3], RGB in [0, 1], before and after.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from finetune_jax.data.augment.base import Transform, share, strength

# Weights of ITU-R 601, which Pillow and torchvision use for grayscale.
_LUMA = (0.299, 0.587, 0.114)


def gray(images: jax.Array) -> jax.Array:
    """Luma f32[b, h, w, 1] of images."""
    return jnp.einsum("bhwc,c->bhw", images, jnp.array(_LUMA), precision="highest")[..., None]


def blend(images: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """factor * images + (1 - factor) * other, clipped to [0, 1]; a factor of 1 changes nothing.

    Args:
      images: f32[b, h, w, 3].
      other: array that broadcasts to the shape of `images`.
      factor: f32[b], at least 0.
    """
    factor = factor[:, None, None, None]
    return jnp.clip(images + (factor - 1) * (images - other), 0, 1)


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends images with black."""
    return blend(images, jnp.zeros_like(images), factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends each image with its mean luma."""
    return blend(images, gray(images).mean((1, 2, 3), keepdims=True), factor)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends each image with its grayscale."""
    return blend(images, gray(images), factor)


def sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends each image with a smoothed image, by Pillow's filter SMOOTH.

    The filter is 3x3 with weight 5 in the middle and 1 elsewhere; pixels at the edges stay.
    """
    height, width = images.shape[1:3]
    around = sum(
        images[:, i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)
    )
    smooth = images.at[:, 1:-1, 1:-1].set((around + 4 * images[:, 1:-1, 1:-1]) / 13)
    return blend(images, smooth, factor)


def shift_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Shifts the hue of each image (in HSV) by `turns` f32[b], in turns of the colour circle."""
    high, low = images.max(-1), images.min(-1)
    span = high - low
    safe = jnp.where(span > 0, span, 1)
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    sixth = jnp.where(
        high == red,
        (green - blue) / safe,
        jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = jnp.where(span > 0, sixth, 0) + 6 * turns[:, None, None]

    def channel(offset: float) -> jax.Array:
        k = jnp.mod(offset + sixth, 6)
        return high - span * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    turned = jnp.stack([channel(5.0), channel(3.0), channel(1.0)], -1)
    # An image whose hue does not turn stays exactly as it is.
    return jnp.where((turns == 0)[:, None, None, None], images, turned)


def colour_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Transform:
    """Changes brightness, contrast, saturation and hue at random, in this order.

    The factor of an argument x is uniform in [max(0, 1 - x), 1 + x], and the shift of the hue is
    uniform in [-hue, hue]. This is torchvision's ColorJitter, which Chen et al. 2020 (SimCLR, arXiv
    2002.05709, appendix A) use, with a fixed order of the four changes instead of a random order.

    Args:
      brightness: range of the factor on brightness, at least 0.
      contrast: range of the factor on contrast, at least 0.
      saturation: range of the factor on saturation, at least 0.
      hue: largest shift of the hue, in [0, 0.5], in turns of the colour circle.
    """
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in factors.items():
        strength(f"colour_jitter: {name}", value)
    strength("colour_jitter: hue", hue, 0.5)

    def apply(key: jax.Array, images: jax.Array, fill: jax.Array) -> jax.Array:
        for index, (name, value) in enumerate(factors.items()):
            if value:
                factor = jax.random.uniform(
                    jax.random.fold_in(key, index),
                    images.shape[:1],
                    minval=max(0.0, 1 - value),
                    maxval=1 + value,
                )
                images = _FACTORS[name](images, factor)
        if hue:
            turns = jax.random.uniform(
                jax.random.fold_in(key, 3), images.shape[:1], minval=-hue, maxval=hue
            )
            images = shift_hue(images, turns)
        return images

    return apply


_FACTORS = {"brightness": brightness, "contrast": contrast, "saturation": saturation}


def grayscale(p: float = 0.1) -> Transform:
    """Makes an image grayscale with probability `p`, in [0, 1]; SimCLR uses 0.2."""
    share("grayscale: p", p)

    def apply(key: jax.Array, images: jax.Array, fill: jax.Array) -> jax.Array:
        chosen = jax.random.bernoulli(key, float(p), (images.shape[0], 1, 1, 1))
        return jnp.where(chosen, gray(images), images)

    return apply


def _levels(images: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(images * 255), 0, 255).astype(jnp.int32)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits` i32[b] of the 8 bits of each value; 8 changes nothing."""
    drop = (8 - bits)[:, None, None, None]
    kept = ((_levels(images) >> drop) << drop) / 255
    return jnp.where(drop == 0, images, kept)


def solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts values that are at least `threshold` f32[b]."""
    return jnp.where(images >= threshold[:, None, None, None], 1 - images, images)


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretches each channel of each image to [0, 1]; a channel of equal values stays."""
    low = images.min((1, 2), keepdims=True)
    span = images.max((1, 2), keepdims=True) - low
    return jnp.where(span > 0, (images - low) / jnp.where(span > 0, span, 1), images)


def equalize(images: jax.Array) -> jax.Array:
    """Equalizes the histogram of each channel of each image, by Pillow's formula for 8 bits."""

    def one(levels: jax.Array, values: jax.Array) -> jax.Array:
        histogram = jnp.bincount(levels.reshape(-1), length=256)
        last = histogram[levels.max()]
        step = (levels.size - last) // 255
        table = (jnp.cumsum(histogram) - histogram + step // 2) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.clip(table, 0, 255)[levels] / 255, values)

    channels = jax.vmap(one, in_axes=(-1, -1), out_axes=-1)
    return jax.vmap(channels)(_levels(images), images)

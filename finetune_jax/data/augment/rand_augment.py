"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719): n random operations of one level per image.

The fourteen operations of the paper, with torchvision's strengths for levels 0 to 30: identity,
autocontrast, equalize, rotate (to 30°), solarize, colour, posterize (8 to 4 bits), contrast,
brightness, sharpness (factors 1 ± 0.9), shear x and y (to 0.3), translate x and y (to 150/331 of
the side). Rotation, shear and translation interpolate bilinearly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from finetune_jax.data.augment import colour
from finetune_jax.data.augment.base import Transform, strength
from finetune_jax.data.augment.geometry import rotation, warp
from finetune_jax.errors import UserError

OPERATIONS = (
    "identity", "autocontrast", "equalize", "rotate", "solarize", "colour", "posterize",
    "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
_HIGHEST = 30  # the highest level


def rand_augment(n: int = 2, m: float = 9) -> Transform:
    """Applies `n` random operations to each image, at level `m` and with random signs.

    Args:
      n: number of operations, applied one after another, at least 1.
      m: level of the operations, in [0, 30].

    Raises:
      UserError: an argument is out of its range.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UserError(f"rand_augment: n: expected a whole number of at least 1, found {n!r}")
    strength("rand_augment: m", m, _HIGHEST)

    def apply(key: jax.Array, images: jax.Array, fill: jax.Array) -> jax.Array:
        batch = images.shape[0]
        for index in range(n):
            first, second = jax.random.split(jax.random.fold_in(key, index))
            chosen = jax.random.randint(first, (batch,), 0, len(OPERATIONS))
            signs = jnp.where(jax.random.bernoulli(second, shape=(batch,)), 1.0, -1.0)
            images = operate(images, chosen, signs, m, fill)
        return images

    return apply


def operate(
    images: jax.Array, chosen: jax.Array, signs: jax.Array, m: float, fill: jax.Array
) -> jax.Array:
    """Applies one operation to each image.

    Every operation is computed for every image, and the chosen result is kept, because the program
    must not depend on random choices.

    Args:
      images: f32[b, h, w, 3].
      chosen: i32[b], numbers of operations in `OPERATIONS`.
      signs: f32[b], -1 or 1: the direction of an operation.
      m: level of the operations, in [0, 30].
      fill: f32[3], colour outside of an image.
    """
    _, height, width, _ = images.shape
    part = m / _HIGHEST
    zero, ones = jnp.zeros_like(signs), jnp.ones_like(signs)

    def matrix(a: jax.Array, b: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.stack([jnp.stack([ones, a, x], -1), jnp.stack([b, ones, y], -1)], -2)

    moves = {
        "rotate": rotation(30 * part * signs, height, width),
        "shear_x": matrix(0.3 * part * signs, zero, zero, zero),
        "shear_y": matrix(zero, 0.3 * part * signs, zero, zero),
        "translate_x": matrix(zero, zero, 150 / 331 * width * part * signs, zero),
        "translate_y": matrix(zero, zero, zero, 150 / 331 * height * part * signs),
    }
    move = matrix(zero, zero, zero, zero)
    moved = jnp.zeros(signs.shape, bool)
    for name, affine in moves.items():
        is_chosen = chosen == OPERATIONS.index(name)
        move = jnp.where(is_chosen[:, None, None], affine, move)
        moved |= is_chosen
    factor = 1 + 0.9 * part * signs
    results = {
        "autocontrast": colour.autocontrast(images),
        "equalize": colour.equalize(images),
        "solarize": colour.solarize(images, ones - part),
        "colour": colour.saturation(images, factor),
        "posterize": colour.posterize(images, jnp.full(signs.shape, 8 - round(4 * part))),
        "contrast": colour.contrast(images, factor),
        "brightness": colour.brightness(images, factor),
        "sharpness": colour.sharpness(images, factor),
    }
    out = jnp.where(moved[:, None, None, None], warp(images, move, fill), images)
    for name, result in results.items():
        out = jnp.where((chosen == OPERATIONS.index(name))[:, None, None, None], result, out)
    return out

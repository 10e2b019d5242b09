"""Corruptions of colour and shape; `CORRUPTIONS` has the constants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from finetune_jax.evaluation.corruptions import filters
from finetune_jax.evaluation.corruptions.base import Change


def brightness(table: np.ndarray, size: int) -> Change:
    """Adds a constant to the value of HSV, and keeps hue and saturation."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        del key
        value = x.max(-1, keepdims=True)
        new = jnp.clip(value + jnp.asarray(table[:, 0], jnp.float32)[level], 0, 1)
        return jnp.where(value > 0, x * new / jnp.maximum(value, 1e-12), new)

    return change


def saturate(table: np.ndarray, size: int) -> Change:
    """Scales and shifts the saturation of HSV. Gray has the hue of red, by convention."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        del key
        factor, offset = jnp.asarray(table, jnp.float32)[level]
        value, low = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
        spread = value - low
        saturation = spread / jnp.maximum(value, 1e-12)
        new = jnp.clip(saturation * factor + offset, 0, 1)
        coloured = value - (value - x) / jnp.maximum(spread, 1e-12) * new * value
        reddish = value * jnp.concatenate([jnp.ones_like(new), 1 - new, 1 - new], -1)
        return jnp.where(spread > 0, coloured, reddish)

    return change


def contrast(table: np.ndarray, size: int) -> Change:
    """Moves pixels towards the mean of each channel; constant: the share of contrast left."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        del key
        mean = x.mean((0, 1), keepdims=True)
        return mean + (x - mean) * jnp.asarray(table[:, 0], jnp.float32)[level]

    return change


def pixelate(table: np.ndarray, size: int) -> Change:
    """Shrinks and enlarges by Pillow's box filter; constant: relative side in between.

    Pillow resizes one axis after the other, and rounds to 8 bits each time.
    """
    sides = [int(size * share) for (share,) in table]
    # Matrices of one shape for all severities: the rows beyond the smaller side are 0.
    down = np.stack([_padded(_box(size, few), size) for few in sides])
    up = np.stack([_padded(_box(few, size), size) for few in sides])

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        del key
        x = jnp.round(x * 255)
        for matrices in (down, up):
            matrix = jnp.asarray(matrices)[level]
            for pattern in ("jw,hwc->hjc", "ih,hwc->iwc"):
                x = jnp.floor(jnp.einsum(pattern, matrix, x, precision="highest") + 0.5)
        return x / 255

    return change


def _box(old: int, new: int) -> np.ndarray:
    """Pillow's resizing of one axis as a matrix f32[new, old]: it resizes the identity matrix."""
    from PIL import Image

    eye = Image.fromarray(np.eye(old, dtype=np.float32))
    return np.asarray(eye.resize((old, new), Image.Resampling.BOX))


def _padded(matrix: np.ndarray, size: int) -> np.ndarray:
    return np.pad(matrix, [(0, size - n) for n in matrix.shape])


def elastic(table: np.ndarray, size: int) -> Change:
    """A random affine map, then smooth random shifts.

    Constants: strength and width of smoothing of the shifts, largest shift of the corners of the
    affine map, in pixels.
    """
    matrices = np.stack(
        [filters.gaussian_matrix(size, sigma, 3.0, "symmetric") for sigma in table[:, 1]]
    )
    middle, third = size // 2, size // 3
    corners = np.array(
        [[middle + third, middle + third], [middle + third, middle - third], [middle - third] * 2],
        np.float32,
    )
    rows, columns = np.mgrid[:size, :size].astype(np.float32)

    def sample(x: jax.Array, down: jax.Array, right: jax.Array, mode: str) -> jax.Array:
        return jax.vmap(
            lambda channel: map_coordinates(channel, [down, right], order=1, mode=mode), -1, -1
        )(x)

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        strength, _, shift = jnp.asarray(table, jnp.float32)[level]
        corner_key, down_key, right_key = jax.random.split(key, 3)
        moved = corners + shift * jax.random.uniform(corner_key, (3, 2), minval=-1.0, maxval=1.0)
        # The inverse map, from (x, y) of the result to (x, y) of the source.
        back = jnp.linalg.solve(jnp.concatenate([moved, jnp.ones((3, 1))], 1), corners)
        place = jnp.stack([columns, rows, jnp.ones_like(rows)], -1) @ back
        x = sample(x, place[..., 1], place[..., 0], "mirror")
        smooth = jnp.asarray(matrices)[level]

        def field(k: jax.Array) -> jax.Array:
            rough = jax.random.uniform(k, (size, size), minval=-1.0, maxval=1.0)
            return strength * filters.both_axes(smooth, rough)

        return sample(x, rows + field(down_key), columns + field(right_key), "reflect")

    return change

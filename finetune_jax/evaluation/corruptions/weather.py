"""Snow and fog; `CORRUPTIONS` has the constants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.evaluation.corruptions import filters
from finetune_jax.evaluation.corruptions.base import Change


def snow(table: np.ndarray, size: int) -> Change:
    """Snowflakes with motion blur over a whitened image.

    Constants: mean, deviation, zoom and threshold of the noise that becomes the flakes; radius and
    width of their motion blur; weight of the image against the whitened image.
    """
    places = np.stack([filters.zoom_places(size, factor) for factor in table[:, 2]])
    weights = filters.motion_weights(table[:, 4], table[:, 5])

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        mean, deviation, _, threshold, _, _, share = jnp.asarray(table, jnp.float32)[level]
        draw, turn = jax.random.split(key)
        flakes = mean + deviation * jax.random.normal(draw, x.shape[:2])
        where = jnp.asarray(places, jnp.float32)[level]
        flakes = filters.both_axes(filters.linear_matrix(where, size), flakes)
        flakes = jnp.where(flakes < threshold, 0, flakes)
        flakes = jnp.floor(jnp.clip(flakes, 0, 1) * 255) / 255
        angle = jax.random.uniform(turn, minval=-135.0, maxval=-45.0)
        flakes = filters.motion(flakes, jnp.asarray(weights)[level], angle)[..., None]
        gray = x @ jnp.array([0.299, 0.587, 0.114], jnp.float32)
        white = jnp.maximum(x, gray[..., None] * 1.5 + 0.5)
        return share * x + (1 - share) * white + flakes + jnp.rot90(flakes, 2)

    return change


def fog(table: np.ndarray, size: int) -> Change:
    """A plasma fractal over a darkened image; constants: strength, decay of the roughness."""

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        strength, decay = jnp.asarray(table, jnp.float32)[level]
        most = x.max()
        haze = plasma(key, size, decay)[..., None]
        return (x + strength * haze) * most / (most + strength)

    return change


def plasma(key: jax.Array, size: int, decay: jax.Array) -> jax.Array:
    """Returns a height map f32[size, size] in [0, 1] by the diamond-square algorithm, on a torus.

    Args:
      key: PRNG key.
      size: side of the returned part; the map is computed with the next power of two as its side.
      decay: the noise is divided by the square of `decay` at every halving of the grid.
    """
    side = 1 << (size - 1).bit_length()
    # The numbers of all points but the first are drawn at once, because many draws compile slowly.
    draws, used = jax.random.uniform(key, (side * side,), minval=-1.0, maxval=1.0), 1
    grid, amount = jnp.zeros((1, 1)), jnp.float32(1)
    while len(grid) < side:
        n = len(grid)
        noise = amount * draws[used : used + 3 * n * n].reshape(3, n, n)
        used += 3 * n * n
        right, below = jnp.roll(grid, -1, 1), jnp.roll(grid, -1, 0)
        centre = (grid + right + below + jnp.roll(right, -1, 0)) / 4 + noise[0]
        top = (grid + right + centre + jnp.roll(centre, 1, 0)) / 4 + noise[1]
        left = (grid + below + centre + jnp.roll(centre, 1, 1)) / 4 + noise[2]
        rows = jnp.stack([jnp.stack([grid, top], -1), jnp.stack([left, centre], -1)], 1)
        grid, amount = rows.reshape(2 * n, 2 * n), amount / decay**2
    low, high = grid.min(), grid.max()
    return ((grid - low) / jnp.maximum(high - low, 1e-12))[:size, :size]

"""Corruptions by weather; see `finetune_jax.evaluation.corruptions` for the constants."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.evaluation.corruptions import filters


def snow(table: np.ndarray, size: int) -> Any:
    """Flakes with trails over a whitened image.

    Constants: mean, deviation, zoom and threshold of the noise that flakes are made of, radius and
    width of their trails, share of the image that is not whitened.
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


def fog(table: np.ndarray, size: int) -> Any:
    """A plasma fractal over a dimmed image; constants: strength, decay of the roughness."""

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        strength, decay = jnp.asarray(table, jnp.float32)[level]
        most = x.max()
        haze = plasma(key, size, decay)[..., None]
        return (x + strength * haze) * most / (most + strength)

    return change


def plasma(key: jax.Array, size: int, decay: jax.Array) -> jax.Array:
    """A height map f32[size, size] in [0, 1] by the diamond-square algorithm, on a torus.

    Args:
      key: of the drawings.
      size: of the part that is returned; the map itself has the next power of two.
      decay: by which the roughness falls at every halving of the grid; the noise is its square.
    """
    side = 1 << (size - 1).bit_length()
    # One drawing for all points but the first: many small ones take long to compile.
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

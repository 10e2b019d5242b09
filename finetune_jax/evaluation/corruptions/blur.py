"""Corruptions that mix neighbouring pixels; `CORRUPTIONS` has the constants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.evaluation.corruptions import filters
from finetune_jax.evaluation.corruptions.base import Change


def gaussian(table: np.ndarray, size: int) -> Change:
    """Gaussian blur; constant: its width in pixels."""
    matrices = np.stack([filters.gaussian_matrix(size, sigma) for (sigma,) in table])

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        del key
        return filters.both_axes(jnp.asarray(matrices)[level], x)

    return change


def defocus(table: np.ndarray, size: int) -> Change:
    """Defocus blur by a disk; constants: radius of the disk, width of the smoothing of its edge."""
    del size
    half = int(max(8, np.ceil(table[:, 0].max()))) + 2
    kernels = np.stack([_disk(radius, alias, half) for radius, alias in table])

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        del key
        kernel = jnp.asarray(kernels, jnp.float32)[level]
        wide = jnp.pad(x, ((half, half), (half, half), (0, 0)), mode="reflect")
        return jax.lax.conv(
            wide.transpose(2, 0, 1)[:, None],
            kernel[None, None],
            (1, 1),
            "VALID",
            precision="highest",
        )[:, 0].transpose(1, 2, 0)

    return change


def _disk(radius: float, alias: float, half: int) -> np.ndarray:
    """Returns the disk f64[2 * half + 1, 2 * half + 1].

    As published, the edge is smoothed within a square of 8 pixels around the middle, or of the
    radius, and what would leave the square is reflected. A disk that reaches the border of its
    square has a sum of up to 1.013, so the published sets are brighter there.
    """
    side = max(8, int(np.ceil(radius)))
    steps = np.arange(-side, side + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    # The smoothing kernel has a radius of one pixel, or of two for large disks.
    reach = 1 if radius <= 8 else 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / alias) ** 2)
    weights /= weights.sum()
    disk = np.pad(disk / disk.sum(), reach, mode="reflect")
    for axis in (0, 1):
        disk = np.apply_along_axis(np.convolve, axis, disk, weights, "valid")
    return np.pad(disk, half - side)


def glass(table: np.ndarray, size: int) -> Change:
    """Frosted glass: pixels take the values of random neighbours.

    The constants are the width of the blur before and after, the largest distance of a neighbour in
    pixels, and the number of rounds. The published program writes an exchange of two pixels, but
    reads the first pixel after it was overwritten. So a pixel takes the value of a neighbour and
    does not give its own. The published sets were made so, and this function does the same.
    """
    matrices = np.stack([filters.gaussian_matrix(size, sigma) for sigma in table[:, 0]])
    reaches, rounds = (np.asarray(table[:, i], np.int32) for i in (1, 2))

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        blur = jnp.asarray(matrices)[level]
        reach, times = jnp.asarray(reaches)[level], jnp.asarray(rounds)[level]
        side = size - 2 * reach  # rows from size - reach down to reach + 1
        x = jnp.floor(filters.both_axes(blur, x) * 255) / 255

        def row(number: jax.Array, x: jax.Array) -> jax.Array:
            down = size - reach - number % side
            steps = jax.random.randint(jax.random.fold_in(key, number), (size, 2), -reach, reach)

            def pixel(column: jax.Array, x: jax.Array) -> jax.Array:
                right = size - reach - column
                from_down, from_right = down + steps[column, 0], right + steps[column, 1]
                return x.at[down, right].set(x[from_down, from_right])

            return jax.lax.fori_loop(0, side, pixel, x)

        return filters.both_axes(blur, jax.lax.fori_loop(0, times * side, row, x))

    return change


def motion(table: np.ndarray, size: int) -> Change:
    """Motion blur within 45 degrees of the horizontal; constants: radius and width in pixels."""
    del size
    weights = filters.motion_weights(table[:, 0], table[:, 1])

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        angle = jax.random.uniform(key, minval=-45.0, maxval=45.0)
        return filters.motion(x, jnp.asarray(weights)[level], angle)

    return change


def zoom(table: np.ndarray, size: int) -> Change:
    """Zoom blur, the mean of the image and its enlargements; constants: last factor, step."""
    factors = [np.arange(1, stop, step) for stop, step in table]
    most = max(map(len, factors))
    places = np.stack(
        [
            np.stack([filters.zoom_places(size, f) for f in np.resize(some, most)])
            for some in factors
        ]
    )
    counts = np.array([len(some) for some in factors])

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        del key
        where, count = jnp.asarray(places, jnp.float32)[level], jnp.asarray(counts)[level]

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            return total + filters.both_axes(filters.linear_matrix(where[i], size), x)

        return jax.lax.fori_loop(0, count, add, x) / (count + 1)

    return change

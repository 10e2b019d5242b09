"""Linear operations on images that several corruptions are made of.

A smoothing or an enlargement along one axis is a matrix; a picture x becomes M x Mᵀ.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


def both_axes(matrix: jax.Array, image: jax.Array) -> jax.Array:
    """``M x Mᵀ`` of f32[h, w] or of every channel of f32[h, w, c]."""
    if image.ndim == 2:
        return matrix @ image @ matrix.T
    return jnp.einsum("ih,hwc,jw->ijc", matrix, image, matrix, precision="highest")


def gaussian_matrix(
    size: int, sigma: float, truncate: float = 4.0, mode: Literal["edge", "symmetric"] = "edge"
) -> np.ndarray:
    """Gaussian smoothing as a matrix f32[size, size].

    Args:
      size: of the axis.
      sigma: pixels; 0 for the identity.
      truncate: where the filter ends, in sigmas.
      mode: what lies beyond the border, a mode of `numpy.pad`: ``edge`` or ``symmetric``.
    """
    radius = int(truncate * sigma + 0.5)
    taps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (taps / max(sigma, 1e-6)) ** 2)
    weights /= weights.sum()
    places = np.pad(np.arange(size), radius, mode)
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    for tap, weight in enumerate(weights):
        np.add.at(matrix, (rows, places[rows + tap]), weight)
    return matrix.astype(np.float32)


def zoom_places(size: int, factor: float) -> np.ndarray:
    """Where each pixel of the enlarged middle comes from, f64[size] along one axis.

    The middle ceil(size / factor) pixels are stretched, corner to corner, to their number times the
    factor, and cut to `size` again.
    """
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    whole = int(round(crop * factor))
    trim = (whole - size) // 2
    return top + (trim + np.arange(size)) * (crop - 1) / max(whole - 1, 1)


def linear_matrix(places: jax.Array, size: int) -> jax.Array:
    """Linear interpolation at `places` f[n] of an axis, as a matrix f32[n, size]."""
    return jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(size)))


def motion(image: jax.Array, weights: jax.Array, angle: jax.Array) -> jax.Array:
    """A trail in one direction: the weighted mean of pixels ahead, the border's repeated.

    Args:
      image: f32[h, w] or f32[h, w, c].
      weights: f32[n], of the pixel itself, the next, ….
      angle: degrees, clockwise from the right.
    """
    reach = len(weights)
    pad = [(reach, reach), (reach, reach)] + [(0, 0)] * (image.ndim - 2)
    wide = jnp.pad(image, pad, mode="edge")
    radians = jnp.deg2rad(angle)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        down = jnp.ceil(i * jnp.sin(radians) - 0.5).astype(jnp.int32)
        right = jnp.ceil(i * jnp.cos(radians) - 0.5).astype(jnp.int32)
        start = (reach + down, reach + right) + (0,) * (image.ndim - 2)
        return total + weights[i] * jax.lax.dynamic_slice(wide, start, image.shape)

    return jax.lax.fori_loop(0, reach, add, jnp.zeros_like(image))


def motion_weights(radius: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Half-Gaussian weights of trails, f32[severities, longest]; zeros behind the shorter ones."""
    lengths = (2 * np.ceil(radius) + 1).astype(int)
    steps = np.arange(lengths.max())
    weights = np.exp(-0.5 * (steps / sigma[:, None]) ** 2) * (steps < lengths[:, None])
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)

"""Linear operations on images, which several corruptions use.

A smoothing or an enlargement along one axis is a matrix M; an image x becomes M x Mᵀ.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


def both_axes(matrix: jax.Array, image: jax.Array) -> jax.Array:
    """Returns ``M x Mᵀ`` for an image x f32[h, w], or for every channel of f32[h, w, c]."""
    if image.ndim == 2:
        return matrix @ image @ matrix.T
    return jnp.einsum("ih,hwc,jw->ijc", matrix, image, matrix, precision="highest")


def gaussian_matrix(
    size: int, sigma: float, truncate: float = 4.0, mode: Literal["edge", "symmetric"] = "edge"
) -> np.ndarray:
    """Gaussian smoothing as a matrix f32[size, size].

    Args:
      size: length of the axis in pixels.
      sigma: width of the filter in pixels; 0 gives the identity.
      truncate: radius of the filter in sigmas.
      mode: values beyond the border, as the modes of `numpy.pad`.
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
    """Returns the source positions f64[size] of the pixels of an enlarged image, along one axis.

    The central ceil(size / factor) pixels are stretched by the factor with aligned corners, and
    the result is cropped to `size`.
    """
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    enlarged = int(round(crop * factor))
    trim = (enlarged - size) // 2
    return top + (trim + np.arange(size)) * (crop - 1) / max(enlarged - 1, 1)


def linear_matrix(places: jax.Array, size: int) -> jax.Array:
    """Returns linear interpolation at the positions `places` f[n] as a matrix f32[n, size]."""
    return jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(size)))


def motion(image: jax.Array, weights: jax.Array, angle: jax.Array) -> jax.Array:
    """Motion blur: each pixel becomes the weighted mean of the pixels in one direction.

    Args:
      image: f32[h, w] or f32[h, w, c]; the border pixels are repeated beyond the border.
      weights: f32[n], weights of the pixel itself, of the next pixel in the direction, ….
      angle: direction in degrees, clockwise from the right.
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
    """Returns half-Gaussian weights f32[severities, longest] for `motion`, padded with zeros."""
    lengths = (2 * np.ceil(radius) + 1).astype(int)
    steps = np.arange(lengths.max())
    weights = np.exp(-0.5 * (steps / sigma[:, None]) ** 2) * (steps < lengths[:, None])
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)

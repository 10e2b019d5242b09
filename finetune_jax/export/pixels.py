"""Preprocessing inside an exported program: raw images of any size to the input of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from jax import lax

from finetune_jax.data.images import LARGEST_RESIZED
from finetune_jax.data.preprocess import ImagePreprocess


def prepared(preprocess: ImagePreprocess, images: jax.Array) -> jax.Array:
    """What `ImagePreprocess.device` gives for the results of `ImagePreprocess.host`, in one graph.

    The sizes may be symbolic dimensions of `jax.export`. Resizing repeats the arithmetic of Pillow
    and gives the same pixels: positions and weights in f64, sums in integers. Where f64 is
    emulated, as on TPUs, a pixel may differ by 1 of 255.

    Args:
      preprocess: the preprocessing of a model of images.
      images: uint8[b, height, width, 3] in RGB, all of one size, not prepared; of pairs of images
        uint8[b, 2, height, width, 3].

    Returns:
      f32[b, size, size, 3], for pairs f32[b * 2, size, size, 3].
    """
    pairs = images.ndim == 5
    flat = images.reshape(-1, *images.shape[2:]) if pairs else images
    square = resized(flat, preprocess.size, preprocess.interpolation, preprocess.crop)
    if preprocess.channels == "bgr":
        square = square[..., ::-1]
    if pairs:
        square = square.reshape(images.shape[0], 2, *square.shape[1:])
    return preprocess.device({"image": square})


def resized(images: jax.Array, side: int, interpolation: str, crop: float = 0.0) -> jax.Array:
    """As `finetune_jax.data.images.resize` of each image, in a program.

    Args:
      images: uint8[b, height, width, 3]; the sizes may be symbolic.
      side, interpolation, crop: as of `finetune_jax.data.images.resize`.

    Returns:
      uint8[b, side, side, 3].
    """
    with jax.enable_x64(True):
        height, width = (jnp.asarray(n, jnp.float64) for n in images.shape[1:3])
        rows, columns, rows_first = _windows(height, width, side, crop)
        if interpolation == "nearest":
            chosen = jnp.take(images, _nearest(rows, side), axis=1, mode="clip")
            return jnp.take(chosen, _nearest(columns, side), axis=2, mode="clip")
        pick = FILTERS[interpolation]

        def columns_last(x: jax.Array) -> jax.Array:
            return pick.along(pick.along(x, 1, rows, side), 2, columns, side)

        def rows_last(x: jax.Array) -> jax.Array:
            return pick.along(pick.along(x, 2, columns, side), 1, rows, side)

        return lax.cond(rows_first, columns_last, rows_last, images)


class _Window(NamedTuple):
    """The pixels along one axis that are kept of a resized image, as f64 scalars.

    Attributes:
      start: where the part that is resized begins in the image.
      scale: pixels of the image for each resized pixel.
      skipped: number of resized pixels before the first one that is kept.
    """

    start: jax.Array
    scale: jax.Array
    skipped: jax.Array


def _windows(
    height: jax.Array, width: jax.Array, side: int, crop: float
) -> tuple[_Window, _Window, jax.Array]:
    """The windows of rows and of columns, and whether rows are resized before columns.

    Args:
      height, width: f64 scalars, the size of the image.
      side, crop: as of `resized`.
    """
    if not crop:
        zero = jnp.zeros((), jnp.float64)
        rows, columns = (_Window(zero, n / side, zero) for n in (height, width))
        return rows, columns, _rows_first(height - side, width - side)
    same = (height == side) & (width == side)  # an image of the right size is not cropped
    scale = round(side / crop) / jnp.minimum(height, width)
    tall, wide = (
        jnp.where(same, side, jnp.maximum(side, jnp.round(n * scale))) for n in (height, width)
    )
    strip = tall * wide > LARGEST_RESIZED * side**2
    return (
        _cropped(height, tall, side, strip & (tall > wide)),
        _cropped(width, wide, side, strip & (tall <= wide)),
        jnp.where(strip, tall <= wide, _rows_first(height - tall, width - wide)),
    )


def _rows_first(fewer_rows: jax.Array, fewer_columns: jax.Array) -> jax.Array:
    """Whether Pillow resizes the rows first; the order decides about roundings."""
    if not pillow_may_resize_rows_first():
        return jnp.asarray(False)
    return (fewer_rows > 0) & (fewer_rows > 2 * fewer_columns)


def pillow_may_resize_rows_first() -> bool:
    """Whether this Pillow resizes rows first where that is faster; before 13, columns are first."""
    return int(PIL.__version__.split(".")[0]) >= 13


def _cropped(size: jax.Array, resized: jax.Array, side: int, before: jax.Array) -> _Window:
    """The window of the central `side` of `resized` pixels; `before`: cropped, then resized."""
    skipped = jnp.floor((resized - side) / 2)
    # Pillow reads the box of the part that is resized in f32.
    start = (skipped * size / resized).astype(jnp.float32)
    stop = ((skipped + side) * size / resized).astype(jnp.float32)
    part = _Window(
        start.astype(jnp.float64), (stop - start).astype(jnp.float64) / side, jnp.zeros_like(size)
    )
    whole = _Window(jnp.zeros_like(size), size / resized, skipped)
    return _Window(*(jnp.where(before, a, b) for a, b in zip(part, whole, strict=True)))


def _nearest(window: _Window, side: int) -> jax.Array:
    """i32[side]: the nearest pixel to each resized one; positions are added up as in Pillow."""

    def step(position: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return position + window.scale, position

    def skip(_: jax.Array, position: jax.Array) -> jax.Array:
        return position + window.scale

    middle = window.start + _rounded(window.scale * 0.5)
    first = lax.fori_loop(0, window.skipped.astype(jnp.int32), skip, middle)
    return lax.scan(step, first, length=side)[1].astype(jnp.int32)


class Filter(NamedTuple):
    """A filter of Pillow.

    Attributes:
      support: half its width in pixels of the smaller image.
      at: its weights, not normalised, of f64 distances in pixels of the smaller image.
    """

    support: float
    at: Callable[[jax.Array], jax.Array]

    def along(self, images: jax.Array, axis: int, window: _Window, side: int) -> jax.Array:
        """Resizes an axis of uint8[b, height, width, 3] to `side` pixels, in uint8."""
        first, stop, weights = self.weights(images.shape[axis], window, side)
        column = tuple(side if i == axis else 1 for i in range(images.ndim))

        def add(tap: jax.Array, sums: jax.Array) -> jax.Array:
            at = first + tap
            weight = jnp.take_along_axis(weights, at[:, None], axis=1, mode="fill", fill_value=0)
            pixels = jnp.take(images, at, axis=axis, mode="clip").astype(jnp.int32)
            return sums + pixels * weight.reshape(column)

        half = jnp.full(
            (*images.shape[:axis], side, *images.shape[axis + 1 :]), 1 << (BITS - 1), jnp.int32
        )
        # A loop over the few pixels under the filter; a product of matrices would take all pixels.
        sums = lax.fori_loop(0, jnp.max(stop - first), add, half)
        return jnp.clip(sums >> BITS, 0, 255).astype(jnp.uint8)

    def weights(
        self, size: int, window: _Window, side: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What each pixel of an axis gives to each resized one.

        Args:
          size: number of pixels along the axis; may be symbolic.
          window: which resized pixels are kept.
          side: their number.

        Returns:
          For each resized pixel the first pixel under the filter and the first one behind it,
          i32[side]; and the weights times 2 ** 22, whole numbers i32[side, size].
        """
        wider = jnp.maximum(window.scale, 1.0)
        support = self.support * wider
        resized = jnp.arange(side, dtype=jnp.float64) + window.skipped + 0.5
        center = (window.start + _rounded(resized * window.scale))[:, None]
        first = jnp.maximum(jnp.trunc(center - support + 0.5), 0)
        stop = jnp.minimum(jnp.trunc(center + support + 0.5), jnp.asarray(size, jnp.float64))
        x = jnp.arange(size, dtype=jnp.float64)
        weights = self.at((x - center + 0.5) * (1.0 / wider))
        weights = jnp.where((x >= first) & (x < stop), weights, 0.0)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / jnp.where(total == 0, 1.0, total) * 2.0**BITS
        whole = jnp.trunc(weights + jnp.where(weights < 0, -0.5, 0.5))
        return (
            first[:, 0].astype(jnp.int32),
            stop[:, 0].astype(jnp.int32),
            whole.astype(jnp.int32),
        )


def _rounded(x: jax.Array) -> jax.Array:
    """The same f64 numbers, rounded: no compiler may join the product with a sum that follows."""
    return lax.optimization_barrier(x)


def _box(x: jax.Array) -> jax.Array:
    return jnp.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _bilinear(x: jax.Array) -> jax.Array:
    return jnp.maximum(1.0 - jnp.abs(x), 0.0)


def _hamming(x: jax.Array) -> jax.Array:
    x = jnp.abs(x)
    a, b = float(np.float32(0.54)), float(np.float32(0.46))  # Pillow has them in f32
    value = _sinc(x) * (a + b * jnp.cos(x * math.pi))
    return jnp.where(x >= 1, 0.0, value)


def _bicubic(x: jax.Array) -> jax.Array:
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def _lanczos(x: jax.Array) -> jax.Array:
    return jnp.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: jax.Array) -> jax.Array:
    scaled = jnp.where(x == 0, 1.0, x * math.pi)
    return jnp.where(x == 0, 1.0, jnp.sin(scaled) / scaled)


BITS = 22
"""Bits of fraction of Pillow's whole weights for images of 8 bits."""

FILTERS = {
    "box": Filter(0.5, _box),
    "bilinear": Filter(1.0, _bilinear),
    "hamming": Filter(1.0, _hamming),
    "bicubic": Filter(2.0, _bicubic),
    "lanczos": Filter(3.0, _lanczos),
}

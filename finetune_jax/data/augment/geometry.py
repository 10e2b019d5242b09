"""Geometric transforms: flip, crops, rotation and other affine maps, and erasing.

Images are f32[b, h, w, channels]; the random choices of each image are independent. `fill`
f32[channels] is the colour of pixels outside of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from finetune_jax.data.augment.base import Transform, each, interval, share
from finetune_jax.errors import UserError

_TRIES = 10  # number of boxes that are drawn per image; the first box that fits is taken


def flip() -> Transform:
    """Mirrors each image left-right with probability 1/2."""

    def apply(key: jax.Array, images: jax.Array, fill: jax.Array) -> jax.Array:
        chosen = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
        return jnp.where(chosen, images[:, :, ::-1], images)

    return apply


def random_crop(pad: int) -> Transform:
    """Pads each image with `fill` and cuts a window of the original size at a random offset.

    He et al. 2015 (arXiv 1512.03385, section 4.2) pad images of 32 pixels by 4.

    Args:
      pad: number of pixels that are added on each side, at least 0.

    Raises:
      UserError: `pad` is no whole number of at least 0.
    """
    if not isinstance(pad, int) or pad < 0:
        raise UserError(f"random_crop: pad: expected a whole number >= 0, found {pad!r}")

    def apply(key: jax.Array, images: jax.Array, fill: jax.Array) -> jax.Array:
        batch, height, width, channels = images.shape
        sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        inside = jnp.pad(jnp.ones((1, height, width, 1), bool), sides)
        padded = jnp.where(inside, jnp.pad(images, sides), fill)
        offsets = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)

        def cut(image: jax.Array, offset: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (*offset, 0), (height, width, channels))

        return each(cut, padded, offsets)

    return apply


def random_resized_crop(
    scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)
) -> Transform:
    """Cuts a box of random area and aspect ratio and resizes it to the image's size, bilinearly.

    From Szegedy et al. 2014 (arXiv 1409.4842). As in torchvision, the first of ten random boxes
    that fits is taken, or else the largest box with a valid aspect ratio in the middle of the
    image. The box is cut out of the preprocessed image, without the parts that preprocessing
    cropped.

    Args:
      scale: range of the area of the box as a share of the image, within (0, 1].
      ratio: range of width / height, above 0; its logarithm is uniform.
    """
    interval("random_resized_crop: scale", scale, 0.0, 1.0, open_low=True)
    interval("random_resized_crop: ratio", ratio, 0.0, math.inf, open_low=True)

    def apply(key: jax.Array, images: jax.Array, fill: jax.Array) -> jax.Array:
        batch, height, width, _ = images.shape
        boxes = draw_boxes(key, batch, height, width, scale, ratio)

        def cut(image: jax.Array, box: jax.Array) -> jax.Array:
            top, left, tall, wide = box
            # Interpolates rows, then columns: on a CPU ten times faster than matrix products.
            above, below, part = _stretch(top, tall, height)
            part = part[:, None, None]
            rows = image[above] * (1 - part) + image[below] * part
            before, behind, part = _stretch(left, wide, width)
            part = part[:, None]
            return rows[:, before] * (1 - part) + rows[:, behind] * part

        return each(cut, images, boxes)

    return apply


def draw_boxes(
    key: jax.Array,
    batch: int,
    height: int,
    width: int,
    scale: Sequence[float],
    ratio: Sequence[float],
) -> jax.Array:
    """Random boxes, drawn as torchvision does.

    Args:
      key: PRNG key.
      batch: number of boxes.
      height: height of the images in pixels.
      width: width of the images in pixels.
      scale: range of the area of a box as a share of the image.
      ratio: range of width / height.

    Returns:
      f32[batch, 4]: top, left, height and width in whole pixels.
    """
    keys = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(
        keys[0], (batch, _TRIES), minval=scale[0], maxval=scale[1]
    )  # fmt: skip
    logs = jax.random.uniform(
        keys[1], (batch, _TRIES), minval=math.log(ratio[0]), maxval=math.log(ratio[1])
    )
    tall = jnp.round(jnp.sqrt(area / jnp.exp(logs)))
    wide = jnp.round(jnp.sqrt(area * jnp.exp(logs)))
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first = jnp.argmax(fits, axis=1)[:, None]
    tall = jnp.take_along_axis(tall, first, 1)[:, 0]
    wide = jnp.take_along_axis(wide, first, 1)[:, 0]
    top = jnp.floor(jax.random.uniform(keys[2], (batch,)) * (height - tall + 1))
    left = jnp.floor(jax.random.uniform(keys[3], (batch,)) * (width - wide + 1))
    # The largest box with a valid aspect ratio, in the middle of the image.
    spare_h, spare_w = float(height), float(width)
    if width / height < ratio[0]:
        spare_h = float(round(width / ratio[0]))
    elif width / height > ratio[1]:
        spare_w = float(round(height * ratio[1]))
    spare = (height - spare_h) // 2, (width - spare_w) // 2, spare_h, spare_w
    drawn = jnp.stack([top, left, tall, wide], -1)
    return jnp.where(fits.any(1, keepdims=True), drawn, jnp.array(spare, jnp.float32))


def _stretch(
    start: jax.Array, length: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Bilinear interpolation of `length` pixels from `start` on to `size` pixels.

    Returns:
      (number of the left neighbour i32[size], number of the right neighbour i32[size], weight of
      the right neighbour f32[size]).
    """
    places = (jnp.arange(size) + 0.5) * length / size - 0.5
    places = start + jnp.clip(places, 0, length - 1)
    first = jnp.floor(places)
    index = first.astype(jnp.int32)
    return index, jnp.minimum(index + 1, size - 1), places - first


def random_erasing(
    p: float = 0.5, area: Sequence[float] = (0.02, 0.4), ratio: Sequence[float] = (0.3, 3.3)
) -> Transform:
    """Fills a random box of an image with noise that is uniform in [0, 1].

    Zhong et al. 2017 (arXiv 1708.04896), "random erasing with random values", with the ranges of
    the paper.

    Args:
      p: probability that an image is changed, in [0, 1].
      area: range of the area of the box as a share of the image, within (0, 1].
      ratio: range of width / height, above 0.
    """
    share("random_erasing: p", p)
    interval("random_erasing: area", area, 0.0, 1.0, open_low=True)
    interval("random_erasing: ratio", ratio, 0.0, math.inf, open_low=True)

    def apply(key: jax.Array, images: jax.Array, fill: jax.Array) -> jax.Array:
        batch, height, width, _ = images.shape
        keys = jax.random.split(key, 3)
        inside = box_mask(draw_boxes(keys[0], batch, height, width, area, ratio), height, width)
        chosen = jax.random.bernoulli(keys[1], float(p), (batch, 1, 1, 1))
        noise = jax.random.uniform(keys[2], images.shape, images.dtype)
        return jnp.where(chosen & inside[..., None], noise, images)

    return apply


def box_mask(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Whether each pixel is inside of a box, bool[b, height, width].

    Args:
      boxes: f32[b, 4]: top, left, height and width in pixels.
      height: height of the images.
      width: width of the images.
    """
    top, left, tall, wide = (boxes[:, i, None] for i in range(4))
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= top) & (rows < top + tall)
    in_columns = (columns >= left) & (columns < left + wide)
    return in_rows[:, :, None] & in_columns[:, None, :]


def warp(images: jax.Array, matrices: jax.Array, fill: jax.Array) -> jax.Array:
    """Affine maps of images: pixel (x, y) of a result is the pixel M (x, y, 1) of the image.

    Between pixels the image is interpolated bilinearly; outside of the image it is `fill`.

    Args:
      images: f32[b, h, w, c].
      matrices: M f32[b, 2, 3], from pixel places of the result to pixel places of the image.
      fill: f32[c].
    """
    _, height, width, channels = images.shape
    ys, xs = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    grid = jnp.stack([xs, ys, jnp.ones_like(xs)], -1).astype(jnp.float32)

    def one(image: jax.Array, matrix: jax.Array) -> jax.Array:
        places = jnp.einsum("ij,hwj->hwi", matrix, grid, precision="highest")
        corner = jnp.floor(places)
        right, below = (places - corner)[..., 0, None], (places - corner)[..., 1, None]
        x, y = corner[..., 0].astype(jnp.int32), corner[..., 1].astype(jnp.int32)
        flat = image.reshape(-1, channels)

        def pixel(x: jax.Array, y: jax.Array) -> jax.Array:
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
            return jnp.where(inside[..., None], flat[index], fill)

        above = pixel(x, y) * (1 - right) + pixel(x + 1, y) * right
        under = pixel(x, y + 1) * (1 - right) + pixel(x + 1, y + 1) * right
        return above * (1 - below) + under * below

    return each(one, images, matrices)


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Matrices f32[b, 2, 3] for `warp`: rotations about the centre by `degrees` f32[b]."""
    angle = degrees * (math.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    return jnp.stack(
        [
            jnp.stack([cos, -sin, x - cos * x + sin * y], -1),
            jnp.stack([sin, cos, y - sin * x - cos * y], -1),
        ],
        -2,
    )

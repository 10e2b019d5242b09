"""Mixes each image of a batch with the previous image, and mixes their classes in equal shares.

The order of a training batch is random. The batch gets ``label2`` i32[b], the class of the image
that was mixed in, and ``mix`` f32[b], the share of each image that is its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from finetune_jax.data.augment.base import Mix, strength
from finetune_jax.data.augment.geometry import box_mask


def mixup(alpha: float = 0.2) -> Mix:
    """Weighted mean of two images (Zhang et al. 2017, arXiv 1710.09412), one weight per image.

    Args:
      alpha: parameter of Beta(alpha, alpha), the distribution of the weight; 0 mixes nothing.
    """
    strength("mixup: alpha", alpha)

    def apply(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        shares = _weights(key, alpha, images.shape[0])
        weights = shares[:, None, None, None]
        return weights * images + (1 - weights) * jnp.roll(images, 1, axis=0), shares

    return apply


def cutmix(alpha: float = 1.0) -> Mix:
    """CutMix: a box of each image is that of another image (Yun et al. 2019, arXiv 1905.04899).

    The box has the aspect ratio of the image and the share 1 - w of its area, with w from
    Beta(alpha, alpha), before the box is clipped at the edges; ``mix`` is the share of the pixels
    that stay.

    Args:
      alpha: parameter of Beta(alpha, alpha); 0 mixes nothing.
    """
    strength("cutmix: alpha", alpha)

    def apply(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch, height, width, _ = images.shape
        keys = jax.random.split(key, 3)
        side = jnp.sqrt(1 - _weights(keys[0], alpha, batch))
        spans = []
        for place, size in ((keys[1], height), (keys[2], width)):
            middle = jnp.floor(jax.random.uniform(place, (batch,)) * size)
            half = jnp.floor(size * side) // 2
            start, stop = jnp.clip(middle - half, 0, size), jnp.clip(middle + half, 0, size)
            spans.append((start, stop - start))
        (top, tall), (left, wide) = spans
        inside = box_mask(jnp.stack([top, left, tall, wide], -1), height, width)
        mixed = jnp.where(inside[..., None], jnp.roll(images, 1, axis=0), images)
        return mixed, 1 - tall * wide / (height * width)

    return apply


def _weights(key: jax.Array, alpha: float, batch: int) -> jax.Array:
    """Weights f32[batch] from Beta(alpha, alpha); ones for alpha = 0."""
    if not alpha:
        return jnp.ones(batch)
    return jax.random.beta(key, float(alpha), float(alpha), (batch,))

"""Images mixed with others of their batch, and their classes in the same shares.

The other image is the one before in the batch, whose order is random. What a task sees is
``label2`` i32[b], the other's class, and ``mix`` f32[b], the share of the image's own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from finetune_jax.data.augment.base import Mix, strength
from finetune_jax.data.augment.geometry import box_mask


def mixup(alpha: float = 0.2) -> Mix:
    """Weighted mean of two images (Zhang et al. 2017, arXiv 1710.09412), one weight per image.

    Args:
      alpha: of Beta(alpha, alpha), from which the weight is drawn; 0 mixes nothing.
    """
    strength("mixup: alpha", alpha)

    def apply(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = _weights(key, alpha, images.shape[0])
        shares = own[:, None, None, None]
        return shares * images + (1 - shares) * jnp.roll(images, 1, axis=0), own

    return apply


def cutmix(alpha: float = 1.0) -> Mix:
    """A box of another image put over each (Yun et al. 2019, arXiv 1905.04899).

    The box has the image's proportions and a share of 1 - w of its area, w from Beta(alpha, alpha),
    before it is cut at the edges; ``mix`` counts the pixels that are left.

    Args:
      alpha: 0 mixes nothing.
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
    if not alpha:
        return jnp.ones(batch)
    return jax.random.beta(key, float(alpha), float(alpha), (batch,))

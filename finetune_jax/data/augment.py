"""Random augmentations on device, inside the jitted step: ``"random_crop(pad=4) + flip"``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import parse

Augment = Callable[[jax.Array, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
"""(PRNG key, normalised images f32[b, h, w, c], batch) to the same, changed."""


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left-right with probability 1/2."""
    chosen = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)


def random_crop(key: jax.Array, images: jax.Array, *, pad: int) -> jax.Array:
    """Cuts a window of the original size, at an own offset per image, out of the padded image.

    Args:
      key: PRNG key.
      images: f32[batch, height, width, channels], normalised: the zeros padded in are the mean.
      pad: pixels on each side.
    """
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)

    def cut(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*offset, 0), (height, width, channels))

    return jax.vmap(cut)(padded, offsets)


AUGMENTATIONS: dict[str, Callable[..., jax.Array]] = {"flip": flip, "random_crop": random_crop}


def parse_augment(text: str) -> Augment:
    """Returns a function of (key, images, batch) that runs the terms left to right.

    Args:
      text: terms joined by ``+``; empty for none.

    Raises:
      UserError: an unknown term or argument.
    """
    terms = parse(text) if text.strip() else ()
    for term in terms:
        if term.name not in AUGMENTATIONS:
            raise UserError(
                f"data.augment: unknown augmentation {term.name!r}."
                f"{nearest(term.name, AUGMENTATIONS)}"
            )
        try:
            signature = inspect.signature(AUGMENTATIONS[term.name])
            signature.bind(None, None, *term.args, **dict(term.kwargs))
        except TypeError as error:
            raise UserError(f"data.augment: {term}: {error}") from None

    def augment(key: jax.Array, images: Any, batch: dict[str, Any]) -> Any:
        for index, term in enumerate(terms):
            function = AUGMENTATIONS[term.name]
            images = function(jax.random.fold_in(key, index), images, **dict(term.kwargs))
        return images, batch

    return augment

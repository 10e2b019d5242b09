"""Corruptions of single pixel values; `CORRUPTIONS` has the constants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.evaluation.corruptions.base import Change


def _amounts(table: np.ndarray) -> jax.Array:
    return jnp.asarray(table[:, 0], jnp.float32)


def gaussian(table: np.ndarray, size: int) -> Change:
    """Normal noise; constant: its standard deviation."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        return x + _amounts(table)[level] * jax.random.normal(key, x.shape)

    return change


def speckle(table: np.ndarray, size: int) -> Change:
    """Normal noise in proportion to the pixel value; constant: its standard deviation."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        return x + x * _amounts(table)[level] * jax.random.normal(key, x.shape)

    return change


def shot(table: np.ndarray, size: int) -> Change:
    """Poisson noise; constant: expected photons of a white pixel."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        photons = _amounts(table)[level]
        return jax.random.poisson(key, x * photons).astype(jnp.float32) / photons

    return change


def impulse(table: np.ndarray, size: int) -> Change:
    """Sets random values of single channels to 0 or 1; constant: the share of these values."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        which, what = jax.random.split(key)
        hit = jax.random.uniform(which, x.shape) < _amounts(table)[level]
        return jnp.where(hit, jax.random.bernoulli(what, 0.5, x.shape).astype(jnp.float32), x)

    return change

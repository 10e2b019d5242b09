"""Corruptions of single values; see `finetune_jax.evaluation.corruptions` for the constants."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _amounts(table: np.ndarray) -> jax.Array:
    return jnp.asarray(table[:, 0], jnp.float32)


def gaussian(table: np.ndarray, size: int) -> Any:
    """Normal noise; constant: its deviation."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        return x + _amounts(table)[level] * jax.random.normal(key, x.shape)

    return change


def speckle(table: np.ndarray, size: int) -> Any:
    """Normal noise in proportion to the value; constant: its deviation."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        return x + x * _amounts(table)[level] * jax.random.normal(key, x.shape)

    return change


def shot(table: np.ndarray, size: int) -> Any:
    """Poisson noise; constant: photons of a white value."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        photons = _amounts(table)[level]
        return jax.random.poisson(key, x * photons).astype(jnp.float32) / photons

    return change


def impulse(table: np.ndarray, size: int) -> Any:
    """Values that become 0 or 1, each channel by itself; constant: their share."""
    del size

    def change(key: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        which, what = jax.random.split(key)
        hit = jax.random.uniform(which, x.shape) < _amounts(table)[level]
        return jnp.where(hit, jax.random.bernoulli(what, 0.5, x.shape).astype(jnp.float32), x)

    return change

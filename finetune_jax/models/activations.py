"""Activation functions of the feed-forward layers of transformers, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax


def _quick_gelu(x: jax.Array) -> jax.Array:
    """The approximation of GELU that CLIP uses."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "gelu_quick": _quick_gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}

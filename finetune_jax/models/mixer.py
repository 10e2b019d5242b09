"""MLP-Mixer of Tolstikhin et al. 2021 (arXiv 2105.01601): dense layers over tokens, then channels.

Stages: ``stem`` (patch embedding), ``block_0`` …, ``norm``, ``head``. The epsilon of LayerNorm is
1e-6. The published weights were trained in Flax with the tanh form of GELU. This module uses the
exact (erf) form, with which timm evaluates the same weights.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import HALF, Entry, Inputs
from finetune_jax.models.staged import StagedModel
from finetune_jax.models.vit_layers import FinalNorm

# (width, depth) by size. The hidden layer over tokens has half the width, over channels four times.
SIZES = {"s": (512, 8), "b": (768, 12), "l": (1024, 24)}


class Stem(nn.Module):
    """Images f32[b, h, w, 3] to tokens [b, h/patch * w/patch, width]."""

    width: int
    patch: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch, "VALID", dtype=self.dtype, name="embedding")(x)
        return x.reshape(x.shape[0], -1, self.width)


class Block(nn.Module):
    """Mixes tokens, then channels; shape [b, tokens, width].

    Attributes:
      token_inner, inner: hidden widths of the dense layers over tokens and over channels.
      dropout: dropout rate after each dense layer.
      dtype: compute dtype.
    """

    token_inner: int
    inner: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics
        drop = nn.Dropout(self.dropout, deterministic=not dropout)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)

        def mix(y: jax.Array, inner: int, name: str) -> jax.Array:
            width = y.shape[-1]
            y = nn.Dense(inner, dtype=self.dtype, name=f"{name}_in")(y)
            y = drop(nn.gelu(y, approximate=False))
            return drop(nn.Dense(width, dtype=self.dtype, name=f"{name}_out")(y))

        y = mix(norm(name="norm1")(x).swapaxes(1, 2), self.token_inner, "token")
        x = x + y.swapaxes(1, 2)
        return x + mix(norm(name="norm2")(x), self.inner, "mlp")


class Mixer(StagedModel):
    """MLP-Mixer. Weights fit no other image size than the one of their training.

    Attributes:
      width: number of channels of a token.
      depth: number of blocks.
      patch: side of a patch in pixels.
      num_classes: number of outputs of the head.
      token_inner: hidden width over tokens; 0 for half the width.
      inner: hidden width over channels; 0 for four times the width.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: dropout rate after each dense layer of a block, in [0, 1).
    """

    width: int
    depth: int
    patch: int
    num_classes: int
    token_inner: int = 0
    inner: int = 0
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(self.depth)), "norm", "head")

    def setup(self) -> None:
        self.stem = Stem(self.width, self.patch, self.dtype)
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        token_inner, inner = self.token_inner or self.width // 2, self.inner or 4 * self.width
        for i in range(self.depth):
            setattr(self, f"block_{i}", block(token_inner, inner, self.dropout, self.dtype))
        self.norm = FinalNorm(epsilon=1e-6, dtype=self.dtype)
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros)

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x, axis=1).astype(jnp.float32)


def _entry(size: str, patch: int) -> Entry:
    width, depth = SIZES[size]
    published = (size, patch) in {("b", 16), ("l", 16)}
    return Entry(
        "mixer",
        functools.partial(Mixer, width, depth, patch),
        inputs=Inputs(224, HALF, HALF, "bicubic"),
        weights=(f"hf:timm/mixer_{size}{patch}_224.goog_in21k_ft_in1k",) if published else (),
        licence="Apache-2.0" if published else "",
        patch=patch,
        dropout=True,
    )


ENTRIES = {f"mixer_{s}{p}": _entry(s, p) for s in SIZES for p in (16, 32)}

"""Vision Transformer of Dosovitskiy et al. 2020 (arXiv 2010.11929), pre-norm, class token or GAP.

Stages: ``stem`` (patch embedding, class token, position embedding), ``block_0`` …, ``norm``,
``head``. GELU is the exact (erf) form and LayerNorm's epsilon 1e-6, as in the JAX originals.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import HALF, Entry, Inputs
from finetune_jax.models.staged import Resizable, StagedModel

# Width, depth and heads of the published sizes.
SIZES = {
    "ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}  # fmt: skip


class Stem(nn.Module):
    """Images f32[b, h, w, 3] to tokens [b, 1 + h/patch * w/patch, width]."""

    width: int
    patch: int
    class_token: bool
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype, name="embedding")(
            x
        )
        x = x.reshape(x.shape[0], -1, self.width)
        if self.class_token:
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), (1, x.shape[1], self.width)
        )
        return nn.Dropout(self.dropout)(x + position.astype(x.dtype), deterministic=not dropout)


class Attention(nn.Module):
    """Multi-head self-attention over [b, tokens, width]; head size is width / heads."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape

        def project(name: str) -> jax.Array:
            y = nn.Dense(width, dtype=self.dtype, name=name)(x)
            return y.reshape(batch, tokens, self.heads, width // self.heads)

        y = jax.nn.dot_product_attention(project("query"), project("key"), project("value"))
        return nn.Dense(width, dtype=self.dtype, name="out")(y.reshape(x.shape))


class Block(nn.Module):
    """Pre-norm transformer block over [b, tokens, width]."""

    heads: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not dropout)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm1")(x)
        x = x + drop(Attention(self.heads, dtype=self.dtype, name="attn")(y))
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, name="mlp_in")(y)
        y = drop(nn.gelu(y, approximate=False))
        return x + drop(nn.Dense(width, dtype=self.dtype, name="mlp_out")(y))


class FinalNorm(nn.LayerNorm):
    """The encoder's last LayerNorm, called like every other stage."""

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        return super().__call__(x)


class ViT(StagedModel):
    """Vision Transformer; any image size that is a multiple of the patch.

    Attributes:
      width: of a token.
      depth: number of blocks.
      heads: of attention; they divide the width.
      patch: side of a patch in pixels.
      num_classes: rows of the head.
      pooling: ``token`` (class token) or ``gap`` (mean over patch tokens, no class token).
      dtype: compute dtype; parameters stay f32.
      remat: recompute each block's activations in the backward pass.
      dropout: rate after embedding, attention and MLP, in [0, 1).
    """

    width: int
    depth: int
    heads: int
    patch: int
    num_classes: int
    pooling: str = "token"
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(self.depth)), "norm", "head")

    @property
    def resizable(self) -> dict[str, Resizable]:
        return {
            "stem/position_embedding": Resizable("position", int(self.pooling == "token")),
            "stem/embedding/kernel": Resizable("kernel"),
        }

    def setup(self) -> None:
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        self.stem = Stem(self.width, self.patch, self.pooling == "token", self.dropout, self.dtype)
        for i in range(self.depth):
            setattr(self, f"block_{i}", block(self.heads, self.dropout, self.dtype))
        self.norm = FinalNorm(epsilon=1e-6, dtype=self.dtype)
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros)

    def pool(self, x: jax.Array) -> jax.Array:
        return (x[:, 0] if self.pooling == "token" else jnp.mean(x, axis=1)).astype(jnp.float32)


ENTRIES = {
    f"vit_{size}{patch}": Entry(
        "vit",
        functools.partial(ViT, width=width, depth=depth, heads=heads, patch=patch),
        inputs=Inputs(224, HALF, HALF, "bicubic", 0.9),
        patch=patch,
        dropout=True,
    )
    for size, (width, depth, heads) in SIZES.items()
    for patch in (8, 14, 16, 32)
}

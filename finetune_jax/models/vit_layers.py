"""Modules of Vision Transformers: stem, attention, block, final norm, attention pooling."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.activations import ACTIVATIONS

POOLINGS = ("token", "gap", "token_gap", "map")
POSITIONS = ("all", "class", "patches")


SWIGLU = "swiglu"


def pool_tokens(x: jax.Array, pooling: str, prefix: int) -> jax.Array:
    """Tokens [b, prefix + n, width] to features [b, width], or [b, 2 width] for ``token_gap``.

    Args:
      x: class token, registers and patches, in this order.
      pooling: ``token`` takes the first token, ``gap`` the mean over the patches, ``token_gap``
        concatenates both.
      prefix: number of tokens before the patches, which the mean leaves out.
    """
    if pooling == "token":
        return x[:, 0]
    mean = jnp.mean(x[:, prefix:], axis=1)
    return mean if pooling == "gap" else jnp.concatenate([x[:, 0], mean], axis=-1)


class Stem(nn.Module):
    """Images f32[b, h, w, 3] to tokens [b, class + registers + h/patch * w/patch, width].

    Attributes:
      width, patch, class_token, registers, positions, patch_bias, pre_norm, epsilon: see `ViT`.
      dropout: dropout rate.
      dtype: compute dtype.
    """

    width: int
    patch: int
    class_token: bool
    registers: int
    positions: str
    patch_bias: bool
    pre_norm: bool
    epsilon: float
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics
        patch = (self.patch, self.patch)
        embedding = nn.Conv(
            self.width, patch, patch, "VALID", use_bias=self.patch_bias, dtype=self.dtype,
            name="embedding",
        )  # fmt: skip
        x = embedding(x)
        x = x.reshape(x.shape[0], -1, self.width)
        prefix = []
        if self.class_token:
            prefix.append(self.param("class_token", nn.initializers.zeros, (1, 1, self.width)))
        if self.registers:
            shape, init = (1, self.registers, self.width), nn.initializers.normal(1e-6)
            prefix.append(self.param("register_tokens", init, shape))
        before = [jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])).astype(x.dtype) for t in prefix]
        placed = positions_before(self.positions, self.class_token, self.registers)
        shape = (1, placed + x.shape[1], self.width)
        position = self.param("position_embedding", nn.initializers.normal(0.02), shape)
        without = jnp.zeros((1, self.class_token + self.registers - placed, self.width))
        position = jnp.concatenate([position[:, :placed], without, position[:, placed:]], axis=1)
        x = jnp.concatenate([*before, x], axis=1) + position.astype(x.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=not dropout)
        if self.pre_norm:
            x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        return x


def positions_before(positions: str, class_token: bool, registers: int) -> int:
    """Number of tokens before the patches that have a position embedding; see `ViT.positions`."""
    return {"all": class_token + registers, "class": int(class_token), "patches": 0}[positions]


class Attention(nn.Module):
    """Multi-head attention with heads of size width / heads.

    The tokens x [b, n, width] attend to each other, or to `context` [b, m, width]. With `bias`
    False, the projections to queries, keys and values have no bias.
    """

    heads: int
    dtype: Any = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        context = x if context is None else context

        def project(name: str, source: jax.Array) -> jax.Array:
            y = nn.Dense(width, use_bias=self.bias, dtype=self.dtype, name=name)(source)
            return y.reshape(*source.shape[:2], self.heads, width // self.heads)

        y = jax.nn.dot_product_attention(
            project("query", x), project("key", context), project("value", context)
        )
        return nn.Dense(width, dtype=self.dtype, name="out")(y.reshape(x.shape))


def feed_forward(
    x: jax.Array,
    inner: int,
    activation: str,
    drop: Callable[[jax.Array], jax.Array],
    dtype: Any,
) -> jax.Array:
    """Applies the dense layers ``mlp_in`` and ``mlp_out``, which the calling module owns.

    In SwiGLU (Shazeer 2020, arXiv 2002.05202), the first half of the outputs of ``mlp_in`` is the
    gate.
    """
    gated = activation == SWIGLU
    y = nn.Dense(inner * (2 if gated else 1), dtype=dtype, name="mlp_in")(x)
    if gated:
        gate, y = jnp.split(y, 2, axis=-1)
        y = nn.silu(gate) * y
    else:
        y = ACTIVATIONS[activation](y)
    return nn.Dense(x.shape[-1], dtype=dtype, name="mlp_out")(drop(y))


class Block(nn.Module):
    """Pre-norm transformer block over [b, tokens, width].

    Attributes:
      heads, inner, activation, layer_scale, epsilon: see `ViT`; `inner` is above 0 here.
      dropout: dropout rate.
      dtype: compute dtype.
      qkv_bias: see `ViT`.
    """

    heads: int
    inner: int
    activation: str
    layer_scale: float
    epsilon: float
    dropout: float
    dtype: Any = jnp.float32
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics
        drop = nn.Dropout(self.dropout, deterministic=not dropout)
        norm = functools.partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)

        def scaled(y: jax.Array, name: str) -> jax.Array:
            if not self.layer_scale:
                return y
            init = nn.initializers.constant(self.layer_scale)
            return y * self.param(name, init, (y.shape[-1],)).astype(y.dtype)

        attention = Attention(self.heads, self.dtype, self.qkv_bias, name="attn")
        y = drop(attention(norm(name="norm1")(x)))
        x = x + scaled(y, "layer_scale1")
        y = feed_forward(norm(name="norm2")(x), self.inner, self.activation, drop, self.dtype)
        return x + scaled(drop(y), "layer_scale2")


class FinalNorm(nn.LayerNorm):
    """The encoder's last LayerNorm, called like every other stage.

    Attributes:
      pooling: pooling of the tokens before the norm, see `pool_tokens`; '' for no pooling here.
      prefix: number of tokens before the patches.
    """

    pooling: str = ""
    prefix: int = 0

    def __call__(  # type: ignore[override]  # the arguments of a stage
        self, x: jax.Array, batch_statistics: bool, dropout: bool
    ) -> jax.Array:
        del batch_statistics, dropout
        if self.pooling:
            x = pool_tokens(x, self.pooling, self.prefix)
        normed: jax.Array = super().__call__(x)
        return normed


class MapPool(nn.Module):
    """Attention pooling: one learned probe attends to all tokens (Zhai et al., arXiv 2106.04560).

    Tokens [b, n, width] to features [b, width].

    Attributes:
      heads, inner, activation, epsilon: as in `Block`.
      dropout: dropout rate.
      dtype: compute dtype.
    """

    heads: int
    inner: int
    activation: str
    epsilon: float
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics
        drop = nn.Dropout(self.dropout, deterministic=not dropout)
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = drop(Attention(self.heads, dtype=self.dtype, name="attn")(probe, x))
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        return (x + drop(feed_forward(y, self.inner, self.activation, drop, self.dtype)))[:, 0]

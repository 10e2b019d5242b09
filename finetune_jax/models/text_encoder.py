"""Text encoders: BERT (arXiv 1810.04805), RoBERTa (arXiv 1907.11692), MiniLM (arXiv 2002.10957).

The models are post-norm transformers with learned positions. Stages: ``stem``
(embeddings of words, positions and token types, then LayerNorm), ``block_0`` …, ``pooler``
with the pooling of that name, ``head``. The value between two stages is the pair (tokens f[b, n,
width], mask bool[b, n]).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError, nearest
from finetune_jax.models.activations import ACTIVATIONS
from finetune_jax.models.registry import Entry, Inputs
from finetune_jax.models.staged import StagedModel

Tokens = tuple[jax.Array, jax.Array]
"""(tokens f[b, n, width], mask bool[b, n]); the mask is False at padding tokens."""

POOLINGS = ("cls", "mean", "pooler")

_INIT = nn.initializers.normal(0.02)


class Stem(nn.Module):
    """Token numbers i32[b, n], or the dict that `TextEncoder` documents, to `Tokens`.

    Attributes:
      vocabulary, positions, types: number of rows of the three embeddings.
      width, padding, from_padding, epsilon, dropout: see `TextEncoder`.
      dtype: compute dtype.
    """

    vocabulary: int
    positions: int
    types: int
    width: int
    padding: int
    from_padding: bool
    epsilon: float
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array | Mapping[str, jax.Array], batch_statistics: bool, dropout: bool
    ) -> Tokens:
        del batch_statistics
        given = x if isinstance(x, Mapping) else {"input_ids": x}
        ids = jnp.asarray(given["input_ids"])
        known = ids != self.padding
        mask = known
        if given.get("attention_mask") is not None:
            mask = jnp.asarray(given["attention_mask"]).astype(bool)
        types = given.get("token_type_ids")
        types = jnp.zeros_like(ids) if types is None else jnp.asarray(types)
        most = self.positions - (self.padding + 1 if self.from_padding else 0)
        if ids.shape[1] > most:
            raise UserError(f"expected texts of at most {most} tokens, found {ids.shape[1]}")
        if self.from_padding:
            places = jnp.cumsum(known, axis=1) * known + self.padding
        else:
            places = jnp.arange(ids.shape[1])[None]

        def embed(name: str, count: int, numbers: jax.Array) -> jax.Array:
            table = nn.Embed(count, self.width, dtype=self.dtype, embedding_init=_INIT, name=name)
            return table(numbers)

        y = embed("word", self.vocabulary, ids) + embed("token_type", self.types, types)
        y = y + embed("position", self.positions, places)
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(y)
        return nn.Dropout(self.dropout)(y, deterministic=not dropout), mask


class Attention(nn.Module):
    """Multi-head self-attention over [b, n, width]; no token attends to tokens outside the mask."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape

        def project(name: str) -> jax.Array:
            y = nn.Dense(width, dtype=self.dtype, kernel_init=_INIT, name=name)(x)
            return y.reshape(batch, tokens, self.heads, width // self.heads)

        y = jax.nn.dot_product_attention(
            project("query"), project("key"), project("value"), mask=mask[:, None, None]
        )
        y = y.reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, kernel_init=_INIT, name="out")(y)


class Block(nn.Module):
    """Post-norm transformer block: a LayerNorm follows each residual sum."""

    heads: int
    inner: int
    epsilon: float
    dropout: float
    dtype: Any = jnp.float32
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: Tokens, batch_statistics: bool, dropout: bool) -> Tokens:
        del batch_statistics
        tokens, mask = x
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT)
        norm = functools.partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not dropout)
        y = Attention(self.heads, dtype=self.dtype, name="attn")(tokens, mask)
        tokens = norm(name="norm1")(tokens + drop(y))
        y = ACTIVATIONS[self.activation](dense(self.inner, name="mlp_in")(tokens))
        y = dense(tokens.shape[-1], name="mlp_out")(y)
        return norm(name="norm2")(tokens + drop(y)), mask


class Pooler(nn.Module):
    """Dense layer and tanh over the first token: `Tokens` to [b, width]."""

    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics
        first = x[0][:, 0]
        y = nn.Dense(first.shape[-1], dtype=self.dtype, kernel_init=_INIT, name="dense")(first)
        return nn.Dropout(self.dropout)(jnp.tanh(y), deterministic=not dropout)


class TextEncoder(StagedModel):
    """BERT-like encoder of texts up to a given length.

    The input is a dict ``{"input_ids": i32[b, n], "attention_mask": bool or i32[b, n],
    "token_type_ids": i32[b, n]}``, or only the ids i32[b, n]. The mask and the types may be absent.
    Without a mask, all tokens are text but those of the number `padding`.

    Attributes:
      width: number of channels of a token.
      depth: number of blocks.
      heads: number of attention heads; a divisor of the width.
      num_classes: number of outputs of the head.
      inner: hidden width of the feed-forward layers; 0 for four times the width.
      vocabulary, positions, types: number of rows of the three embeddings.
      padding: number of the token that fills short texts.
      from_padding: True numbers the positions from ``padding + 1`` on and skips padding tokens, as
        RoBERTa does; False numbers all tokens from 0 on.
      epsilon: epsilon of every LayerNorm.
      activation: activation of the feed-forward layers, one of `ACTIVATIONS`.
      pooling: ``cls`` (the first token), ``mean`` (over the tokens inside the mask), or ``pooler``
        (a dense layer and tanh on the first token, in the stage ``pooler``).
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: dropout rate after embedding, attention, feed-forward layers and pooler, in [0, 1).
    """

    width: int
    depth: int
    heads: int
    num_classes: int
    inner: int = 0
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    padding: int = 0
    from_padding: bool = False
    epsilon: float = 1e-12
    activation: str = "gelu"
    pooling: str = "pooler"
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        pooler = ("pooler",) if self.pooling == "pooler" else ()
        return ("stem", *(f"block_{i}" for i in range(self.depth)), *pooler, "head")

    @property
    def most_tokens(self) -> int:
        """Number of tokens of the longest text, special tokens included."""
        return self.positions - (self.padding + 1 if self.from_padding else 0)

    def example(self, size: int) -> dict[str, jax.Array]:
        return {"input_ids": jnp.full((1, size), self.padding + 1, jnp.int32)}

    def check(self) -> None:
        for field, known in (("pooling", POOLINGS), ("activation", (*ACTIVATIONS,))):
            value = getattr(self, field)
            if value not in known:
                raise UserError(
                    f"{field}: expected one of {known}, found {value!r}.{nearest(value, known)}"
                )
        if self.width % self.heads:
            raise UserError(f"{self.heads} heads do not divide the width {self.width}")

    def setup(self) -> None:
        self.check()
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        self.stem = Stem(
            self.vocabulary, self.positions, self.types, self.width, self.padding,
            self.from_padding, self.epsilon, self.dropout, self.dtype,
        )  # fmt: skip
        inner = self.inner or 4 * self.width
        for i in range(self.depth):
            stage = block(
                self.heads, inner, self.epsilon, self.dropout, self.dtype, self.activation
            )
            setattr(self, f"block_{i}", stage)
        if self.pooling == "pooler":
            self.pooler = Pooler(self.dropout, self.dtype)
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=_INIT)

    def pool(self, x: jax.Array | Tokens) -> jax.Array:
        if not isinstance(x, tuple):  # the output of the stage `pooler`
            return x.astype(jnp.float32)
        tokens, mask = x
        if self.pooling == "cls":
            return tokens[:, 0].astype(jnp.float32)
        share = mask[..., None].astype(jnp.float32)
        total = jnp.sum(tokens.astype(jnp.float32) * share, axis=1)
        return total / jnp.maximum(jnp.sum(share, axis=1), 1e-9)


def _fitted(entry: Entry, model: Any) -> Entry:
    """The entry of a model with another number of positions."""
    if model.most_tokens < 1:
        raise UserError(f"model.name: {model.positions} positions leave none for a token")
    own = entry.inputs.size
    published = TextEncoder.positions if not model.from_padding else _ROBERTA["positions"]
    size = own if model.positions == published else model.most_tokens
    return dataclasses.replace(entry, inputs=Inputs(size))


def _entry(
    family: str,
    size: int,
    weights: tuple[str, ...],
    licence: str,
    **options: Any,
) -> Entry:
    return Entry(
        family,
        functools.partial(TextEncoder, **options),
        inputs=Inputs(size),
        classes=0,
        labels="",
        weights=weights,
        licence=licence,
        dropout=True,
        tokens=True,
        options=(
            "width", "depth", "heads", "inner", "vocabulary", "positions", "types", "padding",
            "from_padding", "epsilon", "activation", "pooling",
        ),
        fitted=_fitted,
    )  # fmt: skip


_ROBERTA = {
    "vocabulary": 50265, "positions": 514, "types": 1, "padding": 1, "from_padding": True,
    "epsilon": 1e-5,
}  # fmt: skip
_BASE, _LARGE = (
    {"width": 768, "depth": 12, "heads": 12},
    {"width": 1024, "depth": 24, "heads": 16},
)

# `Inputs.size` is the largest number of tokens that the published weights are used with.
ENTRIES = {
    "bert_base_uncased": _entry(
        "bert", 512, ("hf:google-bert/bert-base-uncased",), "Apache-2.0", **_BASE
    ),
    "bert_large_uncased": _entry(
        "bert", 512, ("hf:google-bert/bert-large-uncased",), "Apache-2.0", **_LARGE
    ),
    "minilm_l6": _entry(
        "bert", 256, ("hf:sentence-transformers/all-MiniLM-L6-v2",), "Apache-2.0",
        width=384, depth=6, heads=12, pooling="mean",
    ),
    "minilm_l12": _entry(
        "bert", 128, ("hf:sentence-transformers/all-MiniLM-L12-v2",), "Apache-2.0",
        width=384, depth=12, heads=12, pooling="mean",
    ),
    "roberta_base": _entry(
        "roberta", 512, ("hf:FacebookAI/roberta-base",), "MIT", **_BASE, **_ROBERTA
    ),
    "roberta_large": _entry(
        "roberta", 512, ("hf:FacebookAI/roberta-large",), "MIT", **_LARGE, **_ROBERTA
    ),
}  # fmt: skip

_SIZES = ("width", "depth", "heads")
GENERIC = {
    "bert": dataclasses.replace(_entry("bert", 512, (), ""), required=_SIZES),
    "roberta": dataclasses.replace(_entry("roberta", 512, (), "", **_ROBERTA), required=_SIZES),
}

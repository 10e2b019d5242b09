"""Models for self-supervised pre-training: with a projection head, or as a masked autoencoder.

Each of these models is a model with one more stage. All other leaves have the same paths as before,
so that they can be loaded into the plain model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError
from finetune_jax.models.staged import EVAL, PRETRAINING, Mode, StagedModel
from finetune_jax.models.vit import ViT
from finetune_jax.models.vit_layers import Block


def fields_of(model: StagedModel) -> dict[str, Any]:
    """The fields of a model as keywords, with which another class can be built."""
    names = [f for f in model.__dataclass_fields__ if f not in ("parent", "name")]
    return {name: getattr(model, name) for name in names}


class Projection(nn.Module):
    """Dense layer and ReLU, f32[b, features] to f32[b, width]."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        return nn.relu(nn.Dense(self.width, name="dense")(x.astype(jnp.float32)))


def with_projection(model: StagedModel, hidden: int) -> StagedModel:
    """The model with a hidden layer before its head; the same model for a width `hidden` of 0."""
    if not hidden:
        return model
    return _projected(type(model), hidden)(**fields_of(model))  # type: ignore[arg-type]  # hashable


# Cached, here and below: two models are equal only if their classes are the same object.
@functools.cache
def _projected(base: type[StagedModel], hidden: int) -> type[StagedModel]:
    class Projected(base):  # type: ignore[valid-type, misc]  # a base class chosen at run time
        @property
        def stages(self) -> tuple[str, ...]:
            return (*super().stages[:-1], "projection", "head")

        @property
        def pools_before(self) -> str:
            before: str = super().pools_before
            return "projection" if before == "head" else before

        @property
        def fresh_stages(self) -> dict[str, str]:
            return {**super().fresh_stages, "projection": PRETRAINING["projection"]}

        def setup(self) -> None:
            super().setup()
            self.projection = Projection(hidden)

    Projected.__name__ = Projected.__qualname__ = f"{base.__name__}Projected"
    return Projected


class Decoder(nn.Module):
    """Encoded visible patches to features of all patches: [b, prefix + v, w] to f[b, n, width].

    A learned token takes the place of each masked patch. Positions are learned.

    Attributes:
      width, depth, heads: width, number and attention heads of the decoder's blocks.
      prefix: number of tokens before the patches, which the blocks read and the output leaves out.
      dtype: compute dtype.
    """

    width: int
    depth: int
    heads: int
    prefix: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, order: jax.Array) -> jax.Array:
        count, patches = x.shape[0], order.shape[1]
        x = nn.Dense(self.width, dtype=self.dtype, name="embedding")(x)
        before, seen = x[:, : self.prefix], x[:, self.prefix :]
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        hidden = jnp.broadcast_to(
            token.astype(x.dtype), (count, patches - seen.shape[1], self.width)
        )
        places = jnp.argsort(order, axis=1)[..., None]
        x = jnp.take_along_axis(jnp.concatenate([seen, hidden], axis=1), places, axis=1)
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), (1, patches, self.width)
        )
        x = jnp.concatenate([before, x + position.astype(x.dtype)], axis=1)
        for i in range(self.depth):
            block = Block(
                self.heads, 4 * self.width, "gelu", 0.0, 1e-6, 0.0, self.dtype, name=f"block_{i}"
            )
            x = block(x, False, False)
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x[:, self.prefix :])


def patch_order(key: jax.Array, count: int, patches: int) -> jax.Array:
    """A random order of the patches of each image, i32[count, patches]; visible patches first."""
    return jnp.argsort(jax.random.uniform(key, (count, patches)), axis=1)


def visible(patches: int, mask: float) -> int:
    """Number of patches that stay visible when the fraction `mask` is masked: 1 to patches - 1."""
    return min(max(round(patches * (1 - mask)), 1), patches - 1)


def masked_autoencoder(
    model: StagedModel, size: int, *, mask: float, width: int, depth: int, heads: int
) -> StagedModel:
    """A Vision Transformer as the encoder of a masked autoencoder (He et al., arXiv 2111.06377).

    Called with ``{"image": f32[b, size, size, 3], "key": PRNG key}``, the autoencoder encodes the
    patches that `patch_order` puts first, and predicts f32[b, patches, 3 * patch²] for all
    patches. Called with images alone, the model encodes every patch. The value between two stages
    is the pair (tokens, order i32[b, n]).

    Args:
      model: a `ViT` whose tokens are not pooled before its head.
      size: side of the input images in pixels.
      mask: fraction of the patches that are masked, in (0, 1).
      width, depth, heads: width, number and attention heads of the decoder's blocks.

    Raises:
      UserError: another model, fewer than two patches, or heads that do not divide the width.
    """
    if not isinstance(model, ViT) or model.pooling == "map" or model.norm_pooled:
        name = type(model).__name__
        raise UserError(
            f"task.name: masked pre-training needs a Vision Transformer whose tokens are not "
            f"pooled before its head, such as vit_ti16; found {name}"
        )
    if width % heads:
        raise UserError(f"task.loss: {heads} heads do not divide the decoder's width {width}")
    if size // model.patch < 2:
        raise UserError(
            f"data.image_size: {size} pixels are one patch of {model.patch}; expected at least two"
        )
    masked = _masked(type(model), mask, width, depth, heads)  # type: ignore[arg-type]  # hashable
    return masked(**{**fields_of(model), "num_classes": 3 * model.patch**2})


@functools.cache
def _masked(base: type[ViT], mask: float, width: int, depth: int, heads: int) -> type[ViT]:
    class Masked(base):  # type: ignore[valid-type, misc]  # a base class chosen at run time
        @property
        def stages(self) -> tuple[str, ...]:
            return (*super().stages[:-1], "decoder", "head")

        @property
        def fresh_stages(self) -> dict[str, str]:
            return {**super().fresh_stages, "decoder": PRETRAINING["decoder"]}

        def setup(self) -> None:
            super().setup()
            self.decoder = Decoder(width, depth, heads, self._before, self.dtype)

        @property
        def _before(self) -> int:
            """Number of tokens before the patches."""
            return int(self.has_class_token + self.registers)

        def _visible_tokens(
            self, tokens: jax.Array, key: jax.Array | None
        ) -> tuple[jax.Array, jax.Array]:
            """Returns (tokens to encode, order of the patches)."""
            before, patches = tokens[:, : self._before], tokens[:, self._before :]
            count, n = patches.shape[:2]
            if key is None:
                return tokens, jnp.broadcast_to(jnp.arange(n), (count, n))
            order = patch_order(key, count, n)
            seen = order[:, : visible(n, mask), None]
            kept = jnp.take_along_axis(patches, seen, axis=1)
            return jnp.concatenate([before, kept], axis=1), order

        def __call__(
            self,
            x: Any,
            mode: Mode = EVAL,
            *,
            start: str | None = None,
            stop: str | None = None,
        ) -> Any:
            names = self.stages
            begin = names.index(start) if start else 0
            end = names.index(stop) if stop else len(names)
            for name in names[begin:end]:
                stage = getattr(self, name)
                switches = (name in mode.batch_statistics, name in mode.dropout)
                if name == "stem":
                    images, key = (x["image"], x["key"]) if isinstance(x, Mapping) else (x, None)
                    x = self._visible_tokens(stage(images, *switches), key)
                elif name == "decoder":
                    x = stage(*x)
                elif name == "head":
                    x = stage(x.astype(jnp.float32))
                else:
                    x = (stage(x[0], *switches), x[1])
            return x

    Masked.__name__ = Masked.__qualname__ = f"{base.__name__}Masked"
    return Masked


def patches_of(images: jax.Array, count: int) -> jax.Array:
    """Images f32[b, size, size, 3] as `count` patches in row order, f32[b, count, 3 * patch²]."""
    batch, size = images.shape[:2]
    side = math.isqrt(count)
    patch = size // side
    cut = images.reshape(batch, side, patch, side, patch, 3).swapaxes(2, 3)
    return cut.reshape(batch, count, 3 * patch**2)

"""Models with outputs per position: the head reads a grid of features, and not their mean."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError
from finetune_jax.models.pretraining import fields_of
from finetune_jax.models.staged import StagedModel


class Neck(nn.Module):
    """3x3 convolution and ReLU, [b, h, w, c] to [b, h, w, width]."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        return nn.relu(nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype, name="conv")(x))


def per_place(model: StagedModel, size: int, neck: int = 0) -> StagedModel:
    """A model with the same stages, whose head gives outputs at every position of the grid.

    Args:
      model: a model that keeps a grid up to its head: convolutions, or patch tokens.
      size: side of the input images in pixels.
      neck: width of a convolution before the head, in the stage ``grid_neck``; 0 for a linear head.

    Returns:
      A model with the same parameters, and those of the neck, whose outputs are f32[batch, rows,
      columns, classes].

    Raises:
      UserError: the model averages over positions before its last stages.
    """
    wrapped = _class_of(type(model), neck)(**fields_of(model))  # type: ignore[arg-type]  # hashable
    try:
        shape = jax.eval_shape(
            lambda key: wrapped.init_with_output(key, wrapped.example(size))[0], jax.random.key(0)
        ).shape
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{type(model).__name__} has no grid of features at its end: {error}"
        ) from None
    if len(shape) != 4:
        raise UserError(f"{type(model).__name__} has no grid of features at its end")
    return wrapped


# Cached: two models are equal only if their classes are the same object.
@functools.cache
def _class_of(base: type[StagedModel], neck: int) -> type[StagedModel]:
    class PerPlace(base):  # type: ignore[valid-type, misc]  # a base class chosen at run time
        @property
        def stages(self) -> tuple[str, ...]:
            names: tuple[str, ...] = super().stages
            return (*names[:-1], "grid_neck", "head") if neck else names

        @property
        def pools_before(self) -> str:
            return "grid_neck" if neck else "head"

        @property
        def fresh_stages(self) -> dict[str, str]:
            new = {"grid_neck": "the head of this task has its own convolution"} if neck else {}
            return {**super().fresh_stages, **new}

        def setup(self) -> None:
            super().setup()
            if neck:
                self.grid_neck = Neck(neck, self.dtype)

        def pool(self, x: jax.Array) -> jax.Array:
            return self.grid(x).astype(jnp.float32)

    PerPlace.__name__ = PerPlace.__qualname__ = f"{base.__name__}PerPlace"
    return PerPlace

"""A package of somebody else: models and a name map that configs name by import path."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import Entry, Inputs
from finetune_jax.models.staged import StagedModel
from finetune_jax.pretrained.names import NameMap, layer


class Stem(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        return nn.relu(nn.Conv(8, (3, 3), 2, dtype=self.dtype, name="conv")(x))


class Small(StagedModel):
    num_classes: int
    dtype: Any = jnp.float32

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", "head")

    def setup(self) -> None:
        self.stem = Stem(self.dtype)
        self.head = nn.Dense(self.num_classes)

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


class WithoutClasses(StagedModel):
    width: int


class NoModel:
    pass


def build(*, remat: bool, dropout: float, **options: Any) -> Small:
    del remat, dropout
    return Small(**options)


SMALL = Entry("small", build, inputs=Inputs(16, crop=0), classes=0, labels="")

NAMES = NameMap("small", "other", (*layer("first", "stem/conv"), *layer("last", "head")))

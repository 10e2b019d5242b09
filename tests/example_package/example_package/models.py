"""A model: ``--config.model.name=example_package.models:TINY``, and the name map of its files."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import Entry, Inputs
from finetune_jax.models.staged import StagedModel
from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.names import NameMap, layer


class Conv(nn.Module):
    """A convolution with stride 2 and a ReLU, f32[b, h, w, c] to f32[b, h / 2, w / 2, width]."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        """Ignores the mode: the stage has neither BatchNorm nor dropout."""
        del batch_statistics, dropout
        return nn.relu(nn.Conv(self.width, (3, 3), 2, dtype=self.dtype, name="conv")(x))


class TinyNet(StagedModel):
    """Two convolutions, a global mean and a linear head."""

    num_classes: int
    dtype: Any = jnp.float32

    @property
    def stages(self) -> tuple[str, ...]:
        """The children of the module in forward order."""
        return ("stem", "block_0", "head")

    def setup(self) -> None:
        """Makes the stages."""
        self.stem = Conv(8, self.dtype)
        self.block_0 = Conv(16, self.dtype)
        self.head = nn.Dense(self.num_classes)

    def pool(self, x: jax.Array) -> jax.Array:
        """The mean over all places, f32[b, width]."""
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def _build(*, num_classes: int, dtype: Any, remat: bool, dropout: float) -> TinyNet:
    del remat, dropout
    return TinyNet(num_classes, dtype)


TINY = Entry("tiny_net", _build, inputs=Inputs(16, crop=0), classes=0, labels="")
NAMES = NameMap(
    "tiny_net",
    "example",
    (
        *layer("conv1", "stem/conv", CONV),
        *layer("conv2", "block_0/conv", CONV),
        *layer("fc", "head", DENSE),
    ),
)
"""Tensors of torch: ``--config.pretrained.name_map=example_package.models:NAMES``."""

"""ResNet-8 for CIFAR-10 of the MLPerf Tiny benchmark (arXiv 2106.07597).

The network has three residual blocks of 16, 32 and 64 channels. Unlike in the ResNets of He et al.,
convolutions have biases, and a shortcut that changes the width is a 1x1 convolution without a norm.
Stages: ``stem``, ``block_0`` … ``block_2``, ``head``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import Entry, Inputs
from finetune_jax.models.staged import StagedModel

_KERNEL_INIT = nn.initializers.he_normal()


class Norm(nn.BatchNorm):
    """BatchNorm with Keras' defaults."""

    momentum: float = 0.99
    epsilon: float = 1e-3


def _conv(width: int, size: int, stride: int, dtype: Any) -> nn.Conv:
    return nn.Conv(
        width, (size, size), stride, padding="SAME", dtype=dtype, kernel_init=_KERNEL_INIT
    )


class Stem(nn.Module):
    """3x3 convolution, BatchNorm, ReLU: [b, h, w, 3] to [b, h, w, width]."""

    width: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv = _conv(self.width, 3, 1, self.dtype)
        self.norm = Norm(dtype=self.dtype)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        return nn.relu(self.norm(self.conv(x), use_running_average=not batch_statistics))


class Block(nn.Module):
    """Basic residual block: [b, h, w, c] to [b, h/stride, w/stride, width]."""

    width: int
    stride: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv1 = _conv(self.width, 3, self.stride, self.dtype)
        self.norm1 = Norm(dtype=self.dtype)
        self.conv2 = _conv(self.width, 3, 1, self.dtype)
        self.norm2 = Norm(dtype=self.dtype)
        if self.stride > 1:
            self.shortcut = _conv(self.width, 1, self.stride, self.dtype)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        y = nn.relu(self.norm1(self.conv1(x), use_running_average=not batch_statistics))
        y = self.norm2(self.conv2(y), use_running_average=not batch_statistics)
        return nn.relu(y + (self.shortcut(x) if self.stride > 1 else x))


class ResNet8(StagedModel):
    """ResNet-8.

    Attributes:
      num_classes: number of outputs of the head.
      widths: number of channels per block; all blocks but the first halve the image.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: must be 0: the published networks have no dropout.
    """

    num_classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(len(self.widths))), "head")

    def setup(self) -> None:
        if self.dropout:
            raise ValueError("ResNet-8 has no dropout; set model.dropout to 0")
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        self.stem = Stem(self.widths[0], self.dtype)
        for i, width in enumerate(self.widths):
            setattr(self, f"block_{i}", block(width, 2 if i else 1, self.dtype))
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=_KERNEL_INIT)

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


ENTRIES = {
    "resnet8_mlperf": Entry(
        "resnet8_mlperf",
        ResNet8,
        # Values in [0, 255] without normalisation.
        inputs=Inputs(32, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), crop=0),
        classes=10,
        labels="CIFAR-10: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck",
        weights=("https://github.com/mlcommons/tiny",),
        licence="Apache-2.0",
    )
}

"""MobileNet of Howard et al. 2017 (arXiv 1704.04861), in the form of tf.keras.applications.

Stages: ``stem``, ``block_0`` … ``block_12``, ``head``. A block is a 3x3 depthwise convolution and a
1x1 convolution, each followed by BatchNorm and ReLU6.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import HALF, Entry, Inputs
from finetune_jax.models.staged import StagedModel

# (channels, stride) of the blocks: table 1 of the paper.
LAYOUT = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
    (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class Norm(nn.BatchNorm):
    """BatchNorm with Keras' defaults."""

    momentum: float = 0.99
    epsilon: float = 1e-3


class Stem(nn.Module):
    """3x3 convolution of stride 2: [b, h, w, 3] to [b, h/2, w/2, width]."""

    width: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv1 = nn.Conv(
            self.width, (3, 3), 2, padding="SAME", use_bias=False, dtype=self.dtype
        )
        self.norm1 = Norm(dtype=self.dtype)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        return nn.relu6(self.norm1(self.conv1(x), use_running_average=not batch_statistics))


class Block(nn.Module):
    """Depthwise separable convolution: [b, h, w, inputs] to [b, h/stride, w/stride, width]."""

    inputs: int
    width: int
    stride: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        # At stride 2, Keras pads only the bottom and the right, at any image size.
        padding = 1 if self.stride == 1 else ((0, 1), (0, 1))
        self.depthwise = nn.Conv(
            self.inputs, (3, 3), self.stride, padding=padding, use_bias=False,
            feature_group_count=self.inputs, dtype=self.dtype,
        )  # fmt: skip
        self.norm1 = Norm(dtype=self.dtype)
        self.conv1 = nn.Conv(self.width, (1, 1), use_bias=False, dtype=self.dtype)
        self.norm2 = Norm(dtype=self.dtype)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        x = nn.relu6(self.norm1(self.depthwise(x), use_running_average=not batch_statistics))
        return nn.relu6(self.norm2(self.conv1(x), use_running_average=not batch_statistics))


class MobileNetV1(StagedModel):
    """MobileNet for any image size.

    Attributes:
      num_classes: number of outputs of the head.
      multiplier: factor of all widths, which are rounded down.
      layout: (channels, stride) of each block.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: must be 0; the published rate is 0.001.
    """

    num_classes: int
    multiplier: float = 1.0
    layout: tuple[tuple[int, int], ...] = LAYOUT
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(len(self.layout))), "head")

    def setup(self) -> None:
        if self.dropout:
            raise ValueError("MobileNet has no dropout here; set model.dropout to 0")
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        width = int(32 * self.multiplier)
        self.stem = Stem(width, self.dtype)
        for i, (base, stride) in enumerate(self.layout):
            inputs, width = width, int(base * self.multiplier)
            setattr(self, f"block_{i}", block(inputs, width, stride, self.dtype))
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32)

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


ENTRIES = {
    f"mobilenetv1_{percent:03d}": Entry(
        "mobilenet_v1",
        functools.partial(MobileNetV1, multiplier=percent / 100),
        inputs=Inputs(224, HALF, HALF),
        weights=weights,
        licence="Apache-2.0",
    )
    for percent, weights in (
        (25, ("https://github.com/STMicroelectronics/stm32ai-modelzoo",)),
        (100, ("keras:mobilenet",)),
    )
}

"""SqueezeNet 1.0 of Iandola et al. 2016 (arXiv 1602.07360).

Stages: ``stem``, ``block_0`` … ``block_7`` (fire2 … fire9 of the paper), ``head``. The published
head is a 1x1 convolution with a ReLU before the mean over the image, so that the head reads every
position of the last block: ``stop="head"`` gives f32[b, rows, columns, 512], and a head on pooled
features, such as the head of a solved probe, cannot replace the published head.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import Entry, Inputs
from finetune_jax.models.staged import StagedModel

# (channels of squeeze, channels of each expand, whether a pooling comes first): table 1.
LAYOUT = (
    (16, 64, False), (16, 64, False), (32, 128, False), (32, 128, True), (48, 192, False),
    (48, 192, False), (64, 256, False), (64, 256, True),
)  # fmt: skip

_KERNEL_INIT = nn.initializers.he_uniform()


def _pool(x: jax.Array, overhang: bool) -> jax.Array:
    """3x3 max-pooling of stride 2; `overhang` keeps a last window that crosses the border."""
    over = [(0, (size - 3) % 2) for size in x.shape[1:3]] if overhang else "VALID"
    return nn.max_pool(x, (3, 3), (2, 2), over)


class Stem(nn.Module):
    """7x7 convolution of stride 2, ReLU, pooling: [b, h, w, 3] to [b, h/4, w/4, width]."""

    width: int
    tensorflow: bool
    dtype: Any = jnp.float32

    def setup(self) -> None:
        padding = "SAME" if self.tensorflow else "VALID"
        self.conv1 = nn.Conv(
            self.width, (7, 7), 2, padding=padding, dtype=self.dtype, kernel_init=_KERNEL_INIT
        )

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        return _pool(nn.relu(self.conv1(x)), not self.tensorflow)


class Block(nn.Module):
    """Fire module: 1x1 squeeze, then parallel 1x1 and 3x3 expand; to [b, h, w, 2 * expand]."""

    squeeze: int
    expand: int
    pooled: bool
    tensorflow: bool
    dtype: Any = jnp.float32

    def setup(self) -> None:
        def conv(width: int, size: int) -> nn.Conv:
            return nn.Conv(
                width, (size, size), padding=size // 2, dtype=self.dtype, kernel_init=_KERNEL_INIT
            )

        self.conv1 = conv(self.squeeze, 1)
        self.conv2 = conv(self.expand, 1)
        self.conv3 = conv(self.expand, 3)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        if self.pooled:
            x = _pool(x, not self.tensorflow)
        x = nn.relu(self.conv1(x))
        return jnp.concatenate([nn.relu(self.conv2(x)), nn.relu(self.conv3(x))], axis=-1)


class Head(nn.Dense):
    """Dense layer at every position, ReLU, mean over positions: [b, h, w, c] to [b, classes]."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.mean(nn.relu(super().__call__(x)), axis=(1, 2))


class SqueezeNet(StagedModel):
    """SqueezeNet 1.0.

    Attributes:
      num_classes: number of outputs of the head.
      layout: (channels of squeeze, channels of each expand, pooling first) of each block.
      tensorflow: True: the first convolution pads, and max-pooling drops a last window that crosses
        the border. False, as in PyTorch: no padding, and such a window is kept.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: must be 0; the published dropout is inside the head.
    """

    num_classes: int
    layout: tuple[tuple[int, int, bool], ...] = LAYOUT
    tensorflow: bool = False
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(len(self.layout))), "head")

    def setup(self) -> None:
        if self.dropout:
            raise ValueError("SqueezeNet has no dropout before its head; set model.dropout to 0")
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        self.stem = Stem(96, self.tensorflow, self.dtype)
        for i, options in enumerate(self.layout):
            setattr(self, f"block_{i}", block(*options, self.tensorflow, self.dtype))
        self.head = Head(
            self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.normal(0.01)
        )

    def pool(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32)


# torchvision's SqueezeNet1_0_Weights.IMAGENET1K_V1.
_TORCHVISION = Entry("squeezenet", SqueezeNet, licence="BSD-3-Clause")
ENTRIES = {
    "squeezenet1_0": _TORCHVISION,
    # Values in [0, 1] without normalisation.
    "squeezenet1_0_tf": dataclasses.replace(
        _TORCHVISION,
        build=functools.partial(SqueezeNet, tensorflow=True),
        inputs=Inputs(224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        classes=1001,
        labels="background, then ImageNet-1k in order of WordNet ID",
        weights=("https://github.com/BruceDai/test-data",),
        licence="",
    ),
}

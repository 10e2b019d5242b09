"""MobileNetV2 of Sandler et al. 2018 (arXiv 1801.04381): inverted residuals, linear bottlenecks.

Stages: ``stem``, ``block_0`` … ``block_16``, ``top`` (1x1 convolution, pooling), ``head``. The
released weights differ in four options, which are fields here: padding (PyTorch's symmetric
padding, or TensorFlow's), the constants of BatchNorm, whether activations are capped at 6, and
whether the first block, whose expansion is 1, has an expanding convolution.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import HALF, Entry, Inputs
from finetune_jax.models.staged import StagedModel

# (expansion, channels, number of blocks, stride of the first block): table 2 of the paper.
LAYOUT = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
# Gluon's network has the stride of the group of 64 channels in the group of 96 channels: at 224
# pixels the maps of blocks 6 to 9 are 28 x 28.
_GLUON_LAYOUT = (*LAYOUT[:3], (6, 64, 4, 1), (6, 96, 3, 2), *LAYOUT[5:])

_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def channels(count: float) -> int:
    """Nearest multiple of 8 that is at least 0.9 times `count`, and at least 8."""
    rounded = max(8, int(count + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * count else rounded + 8


class Constants(nn.Module):
    """Options that all convolutions and norms of one model share; see `MobileNetV2`.

    Attributes:
      same: True for TensorFlow's padding, False for PyTorch's.
      capped: True for ReLU6, False for ReLU.
      epsilon, momentum: constants of BatchNorm.
      dtype: compute dtype.
    """

    same: bool = False
    capped: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: Any = jnp.float32

    def act(self, x: jax.Array) -> jax.Array:
        """The activation that follows every norm but the last of a block."""
        return nn.relu6(x) if self.capped else nn.relu(x)

    def conv(self, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv:
        """A square convolution without bias."""
        return nn.Conv(
            width, (size, size), stride, "SAME" if self.same else size // 2, use_bias=False,
            feature_group_count=groups, dtype=self.dtype, kernel_init=_KERNEL_INIT,
        )  # fmt: skip

    def norm(self) -> nn.BatchNorm:
        """A BatchNorm."""
        return nn.BatchNorm(momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype)


class Stem(Constants):
    """3x3 convolution of stride 2, BatchNorm, ReLU6: [b, h, w, 3] to [b, h/2, w/2, width]."""

    width: int = 32

    def setup(self) -> None:
        self.conv1 = self.conv(self.width, 3, 2)
        self.norm1 = self.norm()

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        return self.act(self.norm1(self.conv1(x), use_running_average=not batch_statistics))


class Block(Constants):
    """Inverted residual: 1x1 convolution that expands, 3x3 depthwise, 1x1 without activation.

    [b, h, w, inputs] to [b, h/stride, w/stride, width]; `inner` is the expanded width.
    """

    inputs: int = 8
    inner: int = 8
    width: int = 8
    stride: int = 1
    expand: bool = True

    def setup(self) -> None:
        if self.expand:
            self.conv1 = self.conv(self.inner, 1)
            self.norm1 = self.norm()
        self.depthwise = self.conv(self.inner, 3, self.stride, groups=self.inner)
        self.norm2 = self.norm()
        self.conv2 = self.conv(self.width, 1)
        self.norm3 = self.norm()

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        running, y = not batch_statistics, x
        if self.expand:
            y = self.act(self.norm1(self.conv1(y), use_running_average=running))
        y = self.act(self.norm2(self.depthwise(y), use_running_average=running))
        y = self.norm3(self.conv2(y), use_running_average=running)
        return x + y if self.stride == 1 and self.inputs == self.width else y


class Top(Constants):
    """1x1 convolution, BatchNorm, ReLU6, mean over the image, dropout: [b, h, w, c] to [b, width].

    The mean is part of the stage, because the published dropout follows the mean.
    """

    width: int = 1280
    dropout: float = 0.0

    def setup(self) -> None:
        self.conv1 = self.conv(self.width, 1)
        self.norm1 = self.norm()
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        x = self.act(self.norm1(self.conv1(x), use_running_average=not batch_statistics))
        return self.drop(jnp.mean(x.astype(jnp.float32), axis=(1, 2)), deterministic=not dropout)


class MobileNetV2(StagedModel):
    """MobileNetV2 for any image size.

    Attributes:
      num_classes: number of outputs of the head.
      multiplier: factor of all widths; the width of ``top`` is at least 1280.
      layout: (expansion, channels, number of blocks, stride of the first block) of each group.
      same: True for TensorFlow's padding, which at stride 2 pads only the bottom and the right.
      capped: whether activations are capped at 6, as in the paper.
      expand_first: whether a block of expansion 1 has an expanding convolution too.
      epsilon, momentum: constants of BatchNorm; the momentum is the weight of the old statistics.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: dropout rate before the head, in [0, 1).
    """

    num_classes: int
    multiplier: float = 1.0
    layout: tuple[tuple[int, int, int, int], ...] = LAYOUT
    same: bool = False
    capped: bool = True
    expand_first: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        count = sum(blocks for _, _, blocks, _ in self.layout)
        return ("stem", *(f"block_{i}" for i in range(count)), "top", "head")

    def setup(self) -> None:
        shared = (self.same, self.capped, self.epsilon, self.momentum, self.dtype)
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        width = channels(32 * self.multiplier)
        self.stem = Stem(*shared, width=width)
        number = 0
        for expansion, base, blocks, first in self.layout:
            for i in range(blocks):
                inputs, width = width, channels(base * self.multiplier)
                stage = block(
                    *shared, inputs=inputs, inner=inputs * expansion, width=width,
                    stride=1 if i else first, expand=expansion != 1 or self.expand_first,
                )  # fmt: skip
                setattr(self, f"block_{number}", stage)
                number += 1
        top = channels(1280 * max(1.0, self.multiplier))
        self.top = Top(*shared, width=top, dropout=self.dropout)
        self.head = nn.Dense(
            self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.normal(0.01)
        )


def _entry(inputs: Inputs, weights: tuple[str, ...], licence: str, **options: Any) -> Entry:
    return Entry(
        "mobilenet_v2",
        functools.partial(MobileNetV2, **options),
        inputs=inputs,
        weights=weights,
        licence=licence,
        dropout=True,
    )


_TENSORFLOW = {"same": True, "epsilon": 1e-3}
ENTRIES = {
    **{
        f"mobilenetv2_{percent:03d}": _entry(
            Inputs(224, interpolation="bicubic"),
            (f"hf:timm/mobilenetv2_{percent:03d}.{recipe}_in1k",),
            "Apache-2.0",
            multiplier=percent / 100,
        )
        for percent, recipe in ((50, "lamb"), (100, "ra"), (140, "ra"))
    },
    # tf.keras.applications: values in [-1, 1], and the whole image is resized without a crop.
    "mobilenetv2_100_keras": _entry(
        Inputs(224, HALF, HALF, crop=0),
        ("keras:mobilenet_v2",),
        "Apache-2.0",
        momentum=0.999,
        **_TENSORFLOW,
    ),
    # The original TensorFlow weights, in the form of transformers.
    "mobilenetv2_100_tf": dataclasses.replace(
        _entry(
            Inputs(224, HALF, HALF),
            ("hf:google/mobilenet_v2_1.0_224",),
            "",
            momentum=0.997,
            **_TENSORFLOW,
        ),
        classes=1001,
        labels="background, then ImageNet-1k in order of WordNet ID",
    ),
    # MXNet's Gluon: the trunk alone. Names and shapes do not show its strides and its activation,
    # but stored statistics do: on 63 ImageNet photographs the mean |log ratio| of variances is 0.13
    # with these strides and ReLU, 0.18 with ReLU6, and 0.22 with the strides of the paper.
    "mobilenetv2_100_gluon": dataclasses.replace(
        _entry(
            Inputs(224),
            (),
            "Apache-2.0",
            layout=_GLUON_LAYOUT,
            expand_first=True,
            capped=False,
        ),
        classes=0,
        labels="",
    ),
}

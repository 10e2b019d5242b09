"""ResNets of He et al. 2015 (arXiv 1512.03385), with the stride in the 3x3 convolution ("v1.5").

ResNeXt and wide ResNets have other inner widths of their bottlenecks.

Stages: ``stem``, ``layer1_block0`` …, ``head``. In the variant of Keras, which is the same module
with other options, the first 1x1 convolution has the stride and convolutions have biases.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError
from finetune_jax.models.registry import CAFFE, Entry
from finetune_jax.models.staged import StagedModel

# He initialisation by fan-out, which torchvision uses for these networks.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# Number of blocks per layer, and whether blocks are bottlenecks, by depth: table 1 of the paper.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the convolutions and BatchNorms of a network from the options that all of them share.

    Attributes:
      bias: whether convolutions have a bias, which the BatchNorm after them makes redundant.
      epsilon: number that BatchNorm adds to the variance.
      momentum: weight of the old running statistics; torch's momentum of 0.1 is 0.9 here.
      dtype: compute dtype.
    """

    bias: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: Any = jnp.float32

    def conv(self, width: int, window: int, stride: int = 1, groups: int = 1) -> nn.Conv:
        """A square convolution, padded on all sides by half its window."""
        # "SAME" pads unequal sides at stride 2; the released weights need equal padding.
        return nn.Conv(
            width, (window, window), stride, padding=window // 2, use_bias=self.bias,
            dtype=self.dtype, kernel_init=_KERNEL_INIT, feature_group_count=groups,
        )  # fmt: skip

    def norm(self) -> nn.BatchNorm:
        """A BatchNorm."""
        return nn.BatchNorm(momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype)


class Stem(nn.Module):
    """7x7 convolution, BatchNorm, ReLU, max-pooling: [b, h, w, 3] to [b, h/4, w/4, width]."""

    width: int
    layers: Layers

    def setup(self) -> None:
        self.conv = self.layers.conv(self.width, 7, 2)
        self.norm = self.layers.norm()

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        x = nn.relu(self.norm(self.conv(x), use_running_average=not batch_statistics))
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Shortcut(nn.Module):
    """1x1 convolution and BatchNorm, on the residual path of a block that changes the shape."""

    width: int
    stride: int
    layers: Layers

    def setup(self) -> None:
        self.conv = self.layers.conv(self.width, 1, self.stride)
        self.norm = self.layers.norm()

    def __call__(self, x: jax.Array, batch_statistics: bool) -> jax.Array:
        return self.norm(self.conv(x), use_running_average=not batch_statistics)


class Block(nn.Module):
    """Residual block: [b, h, w, c] to [b, h/stride, w/stride, width].

    Attributes:
      width: number of output channels.
      stride: stride of the block.
      bottleneck: True for a 1x1 convolution to the inner width, a 3x3 and a 1x1 convolution to the
        full width; False for two 3x3 convolutions.
      stride_first: whether the first convolution of the bottleneck has the stride, and not the
        second.
      project: whether the shortcut is a convolution, and not the identity.
      layers: options of convolutions and norms.
      groups, base_width: see `ResNet`.
    """

    width: int
    stride: int
    bottleneck: bool
    stride_first: bool
    project: bool
    layers: Layers
    groups: int = 1
    base_width: int = 64

    def setup(self) -> None:
        if self.bottleneck:
            strides = (self.stride, 1) if self.stride_first else (1, self.stride)
            inner = self.width // 4 * self.base_width // 64 * self.groups
            self.conv1 = self.layers.conv(inner, 1, strides[0])
            self.conv2 = self.layers.conv(inner, 3, strides[1], self.groups)
            self.conv3 = self.layers.conv(self.width, 1)
            self.norm3 = self.layers.norm()
        else:
            self.conv1 = self.layers.conv(self.width, 3, self.stride)
            self.conv2 = self.layers.conv(self.width, 3)
        self.norm1 = self.layers.norm()
        self.norm2 = self.layers.norm()
        if self.project:
            self.shortcut = Shortcut(self.width, self.stride, self.layers)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        running = not batch_statistics
        y = nn.relu(self.norm1(self.conv1(x), use_running_average=running))
        y = self.norm2(self.conv2(y), use_running_average=running)
        if self.bottleneck:
            y = self.norm3(self.conv3(nn.relu(y)), use_running_average=running)
        if self.project:
            x = self.shortcut(x, batch_statistics)
        return nn.relu(x + y)


class ResNet(StagedModel):
    """ResNet for images whose sides are at least 32 pixels.

    Attributes:
      depths: number of blocks per layer.
      bottleneck: see `Block`.
      num_classes: number of outputs of the head.
      widths: number of output channels of the blocks of each layer.
      stem_width: number of channels of the stem.
      stride_first: see `Block`; True is the form of the paper.
      groups: groups of the 3x3 convolution of a bottleneck; ResNeXt (arXiv 1611.05431) has several.
      base_width: channels per group of a bottleneck whose width is 256. The inner width of a
        bottleneck is width / 4 * base_width / 64 * groups, a quarter of the width by default; wide
        ResNets (arXiv 1605.07146) have more.
      conv_bias, epsilon, momentum: see `Layers`.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: must be 0: the published networks have no dropout.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    num_classes: int
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    stride_first: bool = False
    groups: int = 1
    base_width: int = 64
    conv_bias: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        blocks = (f"layer{i + 1}_block{j}" for i, n in enumerate(self.depths) for j in range(n))
        return ("stem", *blocks, "head")

    def check(self) -> None:
        if len(self.depths) != len(self.widths):
            raise UserError(
                f"depths and widths: expected one number per layer in both, found {self.depths} "
                f"and {self.widths}"
            )
        if not self.bottleneck and (self.groups, self.base_width) != (1, 64):
            raise UserError(
                "groups and base_width are those of bottlenecks, and bottleneck is False"
            )

    def setup(self) -> None:
        self.check()
        if self.dropout:
            raise ValueError("the ResNets have no dropout; set model.dropout to 0")
        layers = Layers(self.conv_bias, self.epsilon, self.momentum, self.dtype)
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        self.stem = Stem(self.stem_width, layers)
        before = self.stem_width
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                stride = 2 if i and not j else 1
                project = stride > 1 or before != width
                shape = (width, stride, self.bottleneck, self.stride_first, project)
                stage = block(*shape, layers, self.groups, self.base_width)
                setattr(self, f"layer{i + 1}_block{j}", stage)
                before = width
        # Logits are f32 with any compute dtype, because the loss needs that precision.
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32)

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


_OPTIONS = (
    "depths", "bottleneck", "widths", "stem_width", "stride_first", "groups", "base_width",
    "conv_bias", "epsilon", "momentum",
)  # fmt: skip


def _entry(name: str, depth: int, **options: Any) -> Entry:
    depths, bottleneck = DEPTHS[depth]
    widths = (256, 512, 1024, 2048) if bottleneck else (64, 128, 256, 512)
    return Entry(
        "resnet",
        functools.partial(ResNet, depths=depths, bottleneck=bottleneck, widths=widths, **options),
        weights=(f"hf:timm/{name}.tv_in1k",),
        licence="BSD-3-Clause",
        options=_OPTIONS,
    )


def _keras_entry(depth: int) -> Entry:
    build = functools.partial(
        ResNet, depths=DEPTHS[depth][0], bottleneck=True, stride_first=True, conv_bias=True,
        epsilon=1.001e-5, momentum=0.99,
    )  # fmt: skip
    return Entry(
        "resnet", build, inputs=CAFFE, weights=(f"keras:resnet{depth}",), licence="MIT",
        options=_OPTIONS,
    )  # fmt: skip


ENTRIES = {
    **{f"resnet{depth}": _entry(f"resnet{depth}", depth) for depth in DEPTHS},
    # Groups and channels per group are in the name; wide ResNets have twice the inner width.
    **{
        name: _entry(name, depth, groups=groups, base_width=width)
        for name, depth, groups, width in (
            ("resnext50_32x4d", 50, 32, 4),
            ("resnext101_32x8d", 101, 32, 8),
            ("resnext101_64x4d", 101, 64, 4),
            ("wide_resnet50_2", 50, 1, 128),
            ("wide_resnet101_2", 101, 1, 128),
        )
    },
    **{f"resnet{depth}_keras": _keras_entry(depth) for depth in (50, 101, 152)},
}

GENERIC = {
    "resnet": Entry(
        "resnet", functools.partial(ResNet), classes=0, labels="", options=_OPTIONS,
        required=("depths", "widths", "bottleneck"),
    ),
}  # fmt: skip

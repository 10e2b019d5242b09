"""BiT: pre-activation ResNets with GroupNorm and standardised convolutions, R50x1 to R152x4.

Kolesnikov et al. 2019 (arXiv 1912.11370); identity mappings of He et al. 2016 (arXiv 1603.05027),
weight standardisation of Qiao et al. 2019 (arXiv 1903.10520). Stages: ``stem``, ``layer1_block0``
…, ``norm``, ``head``.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import HALF, Entry, Inputs
from finetune_jax.models.staged import StagedModel

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

# (depth, factor of all widths) of the published weights.
SIZES = ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))

_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class StdConv(nn.Conv):
    """Convolution that standardises its kernel to mean 0 and variance 1 per output channel.

    The leaf ``kernel`` is the kernel before standardisation; see `StagedModel.standardised`.

    Attributes:
      variance_epsilon: number added to the variance.
    """

    variance_epsilon: float = 1e-10

    def param(self, name: str, *args: Any, **options: Any) -> Any:
        value = super().param(name, *args, **options)
        if name != "kernel":
            return value
        centred = value - jnp.mean(value, axis=(0, 1, 2))
        variance = jnp.mean(jnp.square(centred), axis=(0, 1, 2))
        return centred * jax.lax.rsqrt(variance + self.variance_epsilon)


def _conv(width: int, window: int, stride: int, epsilon: float, dtype: Any) -> StdConv:
    # "SAME" pads unequal sides at stride 2; the released weights need equal padding.
    return StdConv(
        width, (window, window), stride, padding=window // 2, use_bias=False, dtype=dtype,
        kernel_init=_KERNEL_INIT, variance_epsilon=epsilon,
    )  # fmt: skip


class Stem(nn.Module):
    """7x7 convolution and max-pooling: [b, h, w, 3] to [b, h/4, w/4, width]."""

    width: int
    epsilon: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv = _conv(self.width, 7, 2, self.epsilon, self.dtype)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        # The released weights pool zeros at the border; the padding of max_pool would be -inf.
        x = jnp.pad(self.conv(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nn.max_pool(x, (3, 3), (2, 2))


class Shortcut(nn.Module):
    """1x1 convolution on the residual path of the first block of a layer."""

    width: int
    stride: int
    epsilon: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv = _conv(self.width, 1, self.stride, self.epsilon, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Block(nn.Module):
    """Pre-activation bottleneck: [b, h, w, c] to [b, h/stride, w/stride, width].

    Attributes:
      width: number of output channels; the inner convolutions have a quarter as many.
      stride: stride of the 3x3 convolution.
      first: whether the block is the first of its layer. Its shortcut is then a convolution of the
        activations after the first norm.
      groups: number of groups of every GroupNorm.
      epsilon: number added to the variance of the standardised kernels.
      dtype: compute dtype.
    """

    width: int
    stride: int
    first: bool
    groups: int
    epsilon: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        inner = self.width // 4
        for i, (width, window, stride) in enumerate(
            ((inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1)), 1
        ):
            norm = nn.GroupNorm(
                self.groups, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype
            )
            setattr(self, f"norm{i}", norm)
            setattr(self, f"conv{i}", _conv(width, window, stride, self.epsilon, self.dtype))
        if self.first:
            self.shortcut = Shortcut(self.width, self.stride, self.epsilon, self.dtype)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        y = nn.relu(self.norm1(x))
        if self.first:
            x = self.shortcut(y)
        y = self.conv1(y)
        y = self.conv2(nn.relu(self.norm2(y)))
        return x + self.conv3(nn.relu(self.norm3(y)))


class FinalNorm(nn.GroupNorm):
    """The last GroupNorm, called like every other stage. `BiT.pool` applies ReLU and pooling."""

    def __call__(  # type: ignore[override]  # the arguments of a stage
        self, x: jax.Array, batch_statistics: bool, dropout: bool
    ) -> jax.Array:
        del batch_statistics, dropout
        normed: jax.Array = super().__call__(x)
        return normed


class BiT(StagedModel):
    """BiT's ResNet-v2 for images whose sides are at least 32 pixels.

    Attributes:
      depths: number of blocks per layer.
      num_classes: number of outputs of the head.
      widths: number of output channels of the blocks of each layer.
      stem_width: number of channels of the stem.
      groups: number of groups of every GroupNorm; a divisor of a quarter of every width.
      kernel_epsilon: number added to the variance of the standardised kernels: 1e-10 in the
        authors' code, 1e-8 in timm and transformers.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: must be 0: the published networks have no dropout.
    """

    depths: tuple[int, ...]
    num_classes: int
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    groups: int = 32
    kernel_epsilon: float = 1e-10
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        blocks = (f"layer{i + 1}_block{j}" for i, n in enumerate(self.depths) for j in range(n))
        return ("stem", *blocks, "norm", "head")

    def standardised(self, module: str) -> bool:
        return module.rsplit("/", 1)[-1].startswith("conv")

    def setup(self) -> None:
        if self.dropout:
            raise ValueError("BiT has no dropout; set model.dropout to 0")
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        shared = (self.groups, self.kernel_epsilon, self.dtype)
        self.stem = Stem(self.stem_width, self.kernel_epsilon, self.dtype)
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                stride = 2 if i and not j else 1
                setattr(self, f"layer{i + 1}_block{j}", block(width, stride, not j, *shared))
        self.norm = FinalNorm(self.groups, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype)
        # Logits are f32 with any compute dtype, because the loss needs that precision.
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros)

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.mean(nn.relu(x).astype(jnp.float32), axis=(1, 2))


def _entry(depth: int, factor: int) -> Entry:
    widths = tuple(factor * width for width in (256, 512, 1024, 2048))
    return Entry(
        "bit",
        functools.partial(BiT, DEPTHS[depth], widths=widths, stem_width=64 * factor),
        # The sizes at which the weights were fine-tuned from ImageNet-21k to ImageNet-1k.
        inputs=Inputs(480 if factor == 4 else 448, HALF, HALF, "bilinear", 1.0),
        weights=(f"hf:timm/resnetv2_{depth}x{factor}_bit.goog_in21k_ft_in1k",),
        licence="Apache-2.0",
    )


ENTRIES = {f"bit_r{depth}x{factor}": _entry(depth, factor) for depth, factor in SIZES}

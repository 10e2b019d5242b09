"""CIFAR ResNets: ResNet-20/32/44/56/110 of He et al. 2015 (arXiv 1512.03385), section 4.2.

ResNet-8 and ResNet-14 are the same networks with fewer blocks, which papers on distillation train
(Tian et al. 2020, arXiv 1910.10699); their weights were not published with the others.

Three layers of n residual blocks with 16, 32 and 64 channels at 32x32, 16x16 and 8x8; the shortcut
of a block that changes the width has no parameters (option A): it takes every second pixel and pads
the channels with zeros.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.models.registry import Entry, Inputs
from finetune_jax.models.staged import StagedModel

# He initialisation by fan-out, which the reference implementations use for these networks.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(width: int, stride: int, dtype: Any) -> nn.Conv:
    # "SAME" pads unequal sides at stride 2; the released weights need equal padding.
    return nn.Conv(
        width, (3, 3), stride, padding=1, use_bias=False, dtype=dtype, kernel_init=_KERNEL_INIT
    )


class Norm(nn.BatchNorm):
    """BatchNorm with the constants of the released weights: PyTorch's momentum 0.1 is 0.9 here."""

    momentum: float = 0.9
    epsilon: float = 1e-5


class Stem(nn.Module):
    """3x3 convolution, BatchNorm, ReLU: f32[b, 32, 32, 3] to f32[b, 32, 32, 16]."""

    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv = _conv(16, 1, self.dtype)
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
        self.conv1 = _conv(self.width, self.stride, self.dtype)
        self.norm1 = Norm(dtype=self.dtype)
        self.conv2 = _conv(self.width, 1, self.dtype)
        self.norm2 = Norm(dtype=self.dtype)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        y = nn.relu(self.norm1(self.conv1(x), use_running_average=not batch_statistics))
        y = self.norm2(self.conv2(y), use_running_average=not batch_statistics)
        if self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
        extra = self.width - x.shape[-1]
        if extra:
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        return nn.relu(x + y)


class ResNetCifar(StagedModel):
    """CIFAR ResNet of depth 6n + 2; stages ``stem``, ``layer1_block0`` …, ``head``.

    Attributes:
      depth: number of layers with weights, 6n + 2: 20, 32, 44, 56 or 110 in the
        paper.
      num_classes: number of outputs of the head.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: must be 0: the published networks have no dropout.
    """

    depth: int
    num_classes: int
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        count = (self.depth - 2) // 6
        blocks = tuple(f"layer{i}_block{j}" for i in (1, 2, 3) for j in range(count))
        return ("stem", *blocks, "head")

    def setup(self) -> None:
        if (self.depth - 2) % 6 or self.depth < 8:
            raise ValueError(f"depth: expected 6n + 2 with n of at least 1, found {self.depth}")
        if self.dropout:
            raise ValueError("the CIFAR ResNets have no dropout; set model.dropout to 0")
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        self.stem = Stem(dtype=self.dtype)
        for name in (name for name in self.stages if "_block" in name):
            layer, index = int(name[5]), int(name.rsplit("block", 1)[1])
            stride = 2 if layer > 1 and index == 0 else 1
            setattr(self, name, block(8 * 2**layer, stride, dtype=self.dtype))
        # Logits are f32 with any compute dtype, because the loss needs that precision.
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32)

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


ENTRIES = {
    f"resnet{depth}_cifar": Entry(
        "resnet_cifar",
        functools.partial(ResNetCifar, depth=depth),
        # All published weights are of this size, and the network halves the sides only twice.
        inputs=Inputs(32, crop=0),
        classes=10,
        labels="CIFAR-10: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck",
        weights=("https://github.com/akamaster/pytorch_resnet_cifar10",) if depth >= 20 else (),
        licence="BSD-2-Clause" if depth >= 20 else "",
    )
    for depth in (8, 14, 20, 32, 44, 56, 110)
}

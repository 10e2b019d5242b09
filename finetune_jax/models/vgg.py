"""VGG networks of Simonyan and Zisserman 2014 (arXiv 1409.1556), configurations D and E.

Stages: ``block1`` … ``block5``, each of which ends in a max-pooling, then the stages that
``model.head`` chooses:

- ``last_fc_only``: ``fc1`` and ``fc2`` with the published weights, and ``head``.
- ``flatten_mlp``: the same stages, with new random values in all of them.
- ``gap_linear``: ``head`` on the mean over positions (Lin et al. 2013, arXiv 1312.4400).
- ``concat_pool``: ``neck``, the head of fastai (Howard and Gugger 2020, arXiv 2002.04688): maximum
  and mean over positions, BatchNorm, dropout, dense, ReLU, BatchNorm, dropout; then ``head``.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.models.registry import CAFFE, Entry
from finetune_jax.models.staged import StagedModel

HEADS = ("last_fc_only", "flatten_mlp", "gap_linear", "concat_pool")

# Convolutions per block: columns D and E of the paper's table 1.
DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

# He initialisation by fan-out, which torchvision uses for these networks.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """3x3 convolutions with ReLU, then max-pooling: [b, h, w, c] to [b, h/2, w/2, width].

    Attributes:
      width: number of channels of every convolution.
      depth: number of convolutions.
      batch_norm: whether a BatchNorm follows each convolution.
      dtype: compute dtype.
    """

    width: int
    depth: int
    batch_norm: bool
    dtype: Any = jnp.float32

    def setup(self) -> None:
        for i in range(1, self.depth + 1):
            conv = nn.Conv(
                self.width, (3, 3), padding=1, dtype=self.dtype, kernel_init=_KERNEL_INIT
            )
            setattr(self, f"conv{i}", conv)
            if self.batch_norm:
                setattr(self, f"norm{i}", nn.BatchNorm(momentum=0.9, dtype=self.dtype))

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del dropout
        for i in range(1, self.depth + 1):
            x = getattr(self, f"conv{i}")(x)
            if self.batch_norm:
                x = getattr(self, f"norm{i}")(x, use_running_average=not batch_statistics)
            x = nn.relu(x)
        return nn.max_pool(x, (2, 2), (2, 2))


class FullyConnected(nn.Module):
    """Dense layer, ReLU and dropout; an input [b, h, w, c] is pooled to a grid and flattened first.

    Attributes:
      width: number of outputs.
      pool_side: side of the grid to which positions are averaged, as in torch's adaptive pooling; 0
        flattens all positions without averaging.
      dropout: dropout rate in [0, 1).
      dtype: compute dtype.
    """

    width: int
    pool_side: int
    dropout: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.dense = nn.Dense(self.width, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics
        if x.ndim == 4:
            x = adaptive_mean(x, self.pool_side) if self.pool_side else x
            x = x.reshape(x.shape[0], -1)
        return self.drop(nn.relu(self.dense(x)), deterministic=not dropout)


def adaptive_mean(x: jax.Array, side: int) -> jax.Array:
    """[b, h, w, c] to [b, side, side, c], as torch's adaptive pooling.

    Cell i is the mean of the rows from floor(i h / side) to ceil((i + 1) h / side).
    """
    for axis in (1, 2):
        length = x.shape[axis]
        if length != side:
            cells = np.arange(side)
            begin, end = cells * length // side, -(-(cells + 1) * length // side)
            position = np.arange(length)
            inside = (position >= begin[:, None]) & (position < end[:, None])
            weights = jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis)), 0, axis)
    return x


class Neck(nn.Module):
    """The layers of fastai's head before its last dense layer: [b, h, w, c] to [b, width]."""

    width: int
    dropout: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.norm1 = nn.BatchNorm(momentum=0.9, dtype=self.dtype)
        self.drop1 = nn.Dropout(self.dropout / 2)
        self.dense = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        self.norm2 = nn.BatchNorm(momentum=0.9, dtype=self.dtype)
        self.drop2 = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        x = jnp.concatenate([jnp.max(x, axis=(1, 2)), jnp.mean(x, axis=(1, 2))], axis=-1)
        x = self.norm1(x, use_running_average=not batch_statistics)
        x = nn.relu(self.dense(self.drop1(x, deterministic=not dropout)))
        x = self.norm2(x, use_running_average=not batch_statistics)
        return self.drop2(x, deterministic=not dropout)


class VGG(StagedModel):
    """VGG for images whose sides are at least 32 pixels.

    Attributes:
      depths: number of convolutions per block.
      num_classes: number of outputs of the head.
      batch_norm: whether a BatchNorm follows each convolution.
      widths: number of channels of each block.
      hidden: widths of ``fc1`` and ``fc2``.
      neck_width: width of the dense layer in ``neck``.
      pool_side: see `FullyConnected`; the published torch weights need 7, at any image size.
      head_kind: one of `HEADS`.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: dropout rate after ``fc1`` and ``fc2``, or of the second dropout in ``neck``, whose
        first dropout has half this rate; in [0, 1). The published networks were trained with 0.5.
    """

    depths: tuple[int, ...]
    num_classes: int
    batch_norm: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: tuple[int, int] = (4096, 4096)
    neck_width: int = 512
    pool_side: int = 7
    head_kind: str = "last_fc_only"
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        between: tuple[str, ...] = {"gap_linear": (), "concat_pool": ("neck",)}.get(
            self.head_kind, ("fc1", "fc2")
        )
        return (*(f"block{i + 1}" for i in range(len(self.depths))), *between, "head")

    @property
    def fresh_stages(self) -> dict[str, str]:
        if self.head_kind == "last_fc_only":
            return {}
        last = self.stages[len(self.depths) :]
        return dict.fromkeys(last, f"model.head={self.head_kind} draws it at random")

    @property
    def absent_stages(self) -> dict[str, str]:
        gone = {"fc1", "fc2"} - {*self.stages}
        reason = f"model.head={self.head_kind} has other layers instead"
        return {**super().absent_stages, **dict.fromkeys(sorted(gone), reason)}

    @property
    def sizes(self) -> dict[str, int]:
        return {"row": self.pool_side, "column": self.pool_side} if self.pool_side else {}

    def setup(self) -> None:
        if self.head_kind not in HEADS:
            raise ValueError(f"head_kind: expected one of {HEADS}, found {self.head_kind!r}")
        if self.dropout and self.head_kind == "gap_linear":
            raise UserError(
                f"model.dropout: the head gap_linear has no dropout; expected 0, found "
                f"{self.dropout}"
            )
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            setattr(self, f"block{i + 1}", block(width, depth, self.batch_norm, self.dtype))
        if "fc1" in self.stages:
            self.fc1 = FullyConnected(self.hidden[0], self.pool_side, self.dropout, self.dtype)
            self.fc2 = FullyConnected(self.hidden[1], 0, self.dropout, self.dtype)
        if "neck" in self.stages:
            self.neck = Neck(self.neck_width, self.dropout, self.dtype)
        # Logits are f32 with any compute dtype, because the loss needs that precision.
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32)

    def pool(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x


def _entry(depth: int, batch_norm: bool) -> Entry:
    name = f"vgg{depth}{'_bn' * batch_norm}"
    return Entry(
        name,
        functools.partial(VGG, DEPTHS[depth], batch_norm=batch_norm),
        weights=(f"hf:timm/{name}.tv_in1k",),
        licence="BSD-3-Clause",
        dropout=True,
        heads=HEADS,
    )


def _keras_entry(depth: int) -> Entry:
    # Keras flattens without pooling, so that its `fc1` fits a single image size.
    build = functools.partial(VGG, DEPTHS[depth], pool_side=0)
    return Entry(
        f"vgg{depth}",
        build,
        inputs=CAFFE,
        weights=(f"keras:vgg{depth}",),
        licence="CC-BY-4.0",
        dropout=True,
        heads=HEADS,
    )


ENTRIES = {
    **{f"vgg{d}{'_bn' * bn}": _entry(d, bn) for d in DEPTHS for bn in (False, True)},
    **{f"vgg{d}_keras": _keras_entry(d) for d in DEPTHS},
}

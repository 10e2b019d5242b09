"""ConvNeXt of Liu et al. 2022 (arXiv 2201.03545) and V2 of Woo et al. 2023 (arXiv 2301.00808).

Stages: ``stem``, ``stage0_block0`` …, ``norm`` (mean over positions, then LayerNorm), ``head``. The
first block of a layer includes the downsampling. GELU is the exact (erf) form, and the epsilon of
LayerNorm is 1e-6.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError
from finetune_jax.models.registry import IMAGENET_MEAN, IMAGENET_STD, Entry, Inputs
from finetune_jax.models.staged import StagedModel

# Numbers of blocks and numbers of channels of the four layers, by size.
SIZES = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "huge": ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}

_KERNEL_INIT = nn.initializers.truncated_normal(0.02)


def _norm(dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype)


def _conv(width: int, window: int, dtype: Any) -> nn.Conv:
    """A convolution with windows that do not overlap."""
    size = (window, window)
    return nn.Conv(width, size, size, padding="VALID", dtype=dtype, kernel_init=_KERNEL_INIT)


class Stem(nn.Module):
    """Patch embedding and LayerNorm: [b, h, w, 3] to [b, h/patch, w/patch, width]."""

    width: int
    patch: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv = _conv(self.width, self.patch, self.dtype)
        self.norm = _norm(self.dtype)

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        return self.norm(self.conv(x))


class Downsample(nn.Module):
    """LayerNorm, then 2x2 convolution at stride 2: [b, h, w, c] to [b, h/2, w/2, width]."""

    width: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.norm = _norm(self.dtype)
        self.conv = _conv(self.width, 2, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class LayerScale(nn.Module):
    """A learned factor per channel, initially 1e-6 (Touvron et al. 2021, arXiv 2103.17239)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.constant(1e-6), (x.shape[-1],))
        return x * scale.astype(x.dtype)


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, arXiv 2301.00808, section 3.2).

    The output is x + gamma x n + beta, where n is the L2 norm of a channel over all positions,
    divided by the mean of these norms over channels. The leaves are not called ``scale`` and
    ``bias``, because gamma and beta do not scale and shift the layer's whole output.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        gamma = self.param("gamma", nn.initializers.zeros, (width,))
        beta = self.param("beta", nn.initializers.zeros, (width,))
        length = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True))
        share = length / (jnp.mean(length, axis=-1, keepdims=True) + 1e-6)
        return x + beta.astype(x.dtype) + gamma.astype(x.dtype) * x * share.astype(x.dtype)


class Block(nn.Module):
    """Residual block: 7x7 depthwise, LayerNorm, dense to four times the width, GELU, dense.

    [b, h, w, c] to [b, h, w, width], or to [b, h/2, w/2, width] with `downsample_first`.

    Attributes:
      width: number of channels.
      downsample_first: whether the block starts with a `Downsample`.
      version: 1 for a `LayerScale` at the end of the residual branch, 2 for a `ResponseNorm` after
        the GELU.
      dtype: compute dtype.
    """

    width: int
    downsample_first: bool
    version: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.downsample_first:
            self.downsample = Downsample(self.width, self.dtype)
        self.depthwise = nn.Conv(
            self.width, (7, 7), padding=3, feature_group_count=self.width, dtype=self.dtype,
            kernel_init=_KERNEL_INIT,
        )  # fmt: skip
        self.norm = _norm(self.dtype)
        self.mlp_in = nn.Dense(4 * self.width, dtype=self.dtype, kernel_init=_KERNEL_INIT)
        self.mlp_out = nn.Dense(self.width, dtype=self.dtype, kernel_init=_KERNEL_INIT)
        if self.version == 1:
            self.layer_scale = LayerScale()
        else:
            self.response = ResponseNorm()

    def __call__(self, x: jax.Array, batch_statistics: bool, dropout: bool) -> jax.Array:
        del batch_statistics, dropout
        if self.downsample_first:
            x = self.downsample(x)
        y = nn.gelu(self.mlp_in(self.norm(self.depthwise(x))), approximate=False)
        if self.version == 1:
            return x + self.layer_scale(self.mlp_out(y))
        return x + self.mlp_out(self.response(y))


class PooledNorm(nn.LayerNorm):
    """Mean over positions, then LayerNorm: [b, h, w, c] to [b, c]."""

    def __call__(  # type: ignore[override]  # the arguments of a stage
        self, x: jax.Array, batch_statistics: bool, dropout: bool
    ) -> jax.Array:
        del batch_statistics, dropout
        normed: jax.Array = super().__call__(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))
        return normed


class ConvNeXt(StagedModel):
    """ConvNeXt for images whose sides are at least 32 pixels.

    Attributes:
      depths: number of blocks per layer.
      widths: number of channels per layer.
      num_classes: number of outputs of the head.
      version: 1 or 2, see `Block`.
      patch: side of the stem's patches in pixels.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: must be 0: the published networks have no dropout.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    num_classes: int
    version: int = 1
    patch: int = 4
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        blocks = (f"stage{i}_block{j}" for i, n in enumerate(self.depths) for j in range(n))
        return ("stem", *blocks, "norm", "head")

    def check(self) -> None:
        if len(self.depths) != len(self.widths):
            raise UserError(
                f"depths and widths: expected one number per layer in both, found {self.depths} "
                f"and {self.widths}"
            )

    def setup(self) -> None:
        self.check()
        if self.version not in (1, 2):
            raise ValueError(f"version: expected 1 or 2, found {self.version}")
        if self.dropout:
            raise ValueError("ConvNeXt has no dropout; set model.dropout to 0")
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        self.stem = Stem(self.widths[0], self.patch, self.dtype)
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                first = i > 0 and j == 0
                setattr(self, f"stage{i}_block{j}", block(width, first, self.version, self.dtype))
        self.norm = PooledNorm(epsilon=1e-6, dtype=self.dtype)
        # Logits are f32 with any compute dtype, because the loss needs that precision.
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=_KERNEL_INIT)

    def pool(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32)


# The training recipe in timm's names of weights that saw ImageNet-1k only, by V1 size.
_TIMM = {"atto": "d2", "femto": "d1", "pico": "d1", "nano": "d1h"}


_INPUTS = Inputs(224, IMAGENET_MEAN, IMAGENET_STD, "bicubic", 0.875)
_OPTIONS = ("depths", "widths", "patch")


def _entry(version: int, size: str) -> Entry:
    depths, widths = SIZES[size]
    name = f"convnext{'v2' * (version == 2)}"
    recipe = "fcmae_ft" if version == 2 else _TIMM.get(size, "fb")
    weights = [f"hf:timm/{name}_{size}.{recipe}_in1k"]
    if recipe in ("fb", "fcmae_ft"):
        weights.append(f"hf:facebook/{name}-{size}{'-1k' * (version == 2)}-224")
    # timm stores the dense layers of its small sizes as 1x1 convolutions.
    form = "_1x1" if size in ("atto", "femto", "pico", "nano") else ""
    return Entry(
        f"{name}{form}",
        functools.partial(ConvNeXt, depths=depths, widths=widths, version=version),
        inputs=dataclasses.replace(_INPUTS, crop=0.95 if recipe == "d1h" else 0.875),
        weights=tuple(weights),
        licence="CC-BY-NC-4.0" if version == 2 else "Apache-2.0",
        options=_OPTIONS,
    )


ENTRIES = {
    **{
        f"convnext_{size}": _entry(1, size)
        for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
    },
    **{
        f"convnextv2_{size}": _entry(2, size)
        for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
    },
}

# In files with the ending _1x1, which are timm's, the dense layers are 1x1 convolutions.
GENERIC = {
    f"{name}{form}": Entry(
        f"{name}{form}", functools.partial(ConvNeXt, version=version), inputs=_INPUTS, classes=0,
        labels="", options=_OPTIONS, required=("depths", "widths"),
    )
    for name, version in (("convnext", 1), ("convnextv2", 2)) for form in ("", "_1x1")
}  # fmt: skip

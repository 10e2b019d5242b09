"""Vision Transformers: ViT (arXiv 2010.11929) and its variants.

The variants are DeiT (2012.12877), DINOv2 (2304.07193) with and without registers (2309.16588), and
the image towers of CLIP (2103.00020) and SigLIP (2303.15343). Stages: ``stem`` (patches, class
token, registers, positions), ``block_0`` …, ``norm``, ``map_pool`` in models whose tokens are
pooled by a probe, ``head``.

The AugReg weights (2106.10270) were trained in Flax with the tanh form of GELU, which the
``augreg_*`` models use. timm and transformers evaluate the same weights with the exact (erf) form,
which the ``vit_*`` models use.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError, nearest
from finetune_jax.models.activations import ACTIVATIONS
from finetune_jax.models.registry import CLIP_MEAN, CLIP_STD, HALF, Entry, Inputs
from finetune_jax.models.staged import Resizable, StagedModel
from finetune_jax.models.vit_layers import (
    POOLINGS,
    POSITIONS,
    SWIGLU,
    Block,
    FinalNorm,
    MapPool,
    Stem,
    pool_tokens,
    positions_before,
)

# Width, depth and heads of the published sizes.
SIZES = {
    "ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16),
    "m": (512, 12, 8), "h": (1280, 32, 16), "so400m": (1152, 27, 16), "g": (1536, 40, 24),
}  # fmt: skip


class ViT(StagedModel):
    """Vision Transformer for any image size that is a multiple of the patch size.

    Attributes:
      width: number of channels of a token.
      depth: number of blocks.
      heads: number of attention heads; a divisor of the width.
      patch: side of a patch in pixels.
      num_classes: number of outputs of the head.
      pooling: ``token`` (class token), ``gap`` (mean over patches), ``token_gap`` (both,
        concatenated) or ``map`` (attention of a learned probe, in the stage ``map_pool``).
      class_token: whether the model has a class token; None: only if the pooling reads it.
      registers: number of learned tokens after the class token, which no pooling reads.
      positions: tokens with a position embedding: ``all``, ``class`` (class token and patches, but
        no registers) or ``patches``.
      inner: hidden width of the feed-forward layers; 0 for four times the width.
      activation: one of `ACTIVATIONS`, such as ``gelu`` (erf), ``gelu_tanh`` and ``gelu_quick``
        (CLIP's), or ``swiglu``.
      layer_scale: initial value of the factors on both residual branches of a block (CaiT, arXiv
        2103.17239); 0 for no such factors.
      pre_norm: whether the stem ends in a LayerNorm, as in CLIP.
      patch_bias: whether the patch embedding has a bias.
      qkv_bias: whether the projections to queries, keys and values of a block have a bias.
      norm_pooled: whether the final norm follows the pooling; False with the pooling ``map``.
      epsilon: epsilon of every LayerNorm.
      dtype: compute dtype; parameters stay f32.
      remat: whether each block's activations are recomputed in the backward pass.
      dropout: dropout rate after embedding, attention and feed-forward layers, in [0, 1).
    """

    width: int
    depth: int
    heads: int
    patch: int
    num_classes: int
    pooling: str = "token"
    class_token: bool | None = None
    registers: int = 0
    positions: str = "all"
    inner: int = 0
    activation: str = "gelu"
    layer_scale: float = 0.0
    pre_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    norm_pooled: bool = False
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        blocks = tuple(f"block_{i}" for i in range(self.depth))
        return ("stem", *blocks, "norm", *["map_pool"] * (self.pooling == "map"), "head")

    @property
    def resizable(self) -> dict[str, Resizable]:
        placed = positions_before(self.positions, self.has_class_token, self.registers)
        return {
            "stem/position_embedding": Resizable("position", placed),
            "stem/embedding/kernel": Resizable("kernel"),
        }

    @property
    def sizes(self) -> dict[str, int]:
        return {"heads": self.heads}

    @property
    def pooled_norm(self) -> bool | None:
        # The norm of one token is the same before and after it is taken.
        return None if self.norm_pooled and self.pooling == "token" else self.norm_pooled

    @property
    def has_class_token(self) -> bool:
        """`class_token`; where it is None, whether the pooling reads the class token."""
        return "token" in self.pooling if self.class_token is None else self.class_token

    def setup(self) -> None:
        self.check()
        inner = self.inner or 4 * self.width
        prefix = self.has_class_token + self.registers
        self.stem = Stem(
            self.width, self.patch, self.has_class_token, self.registers, self.positions,
            self.patch_bias, self.pre_norm, self.epsilon, self.dropout, self.dtype,
        )  # fmt: skip
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block
        for i in range(self.depth):
            stage = block(
                self.heads, inner, self.activation, self.layer_scale, self.epsilon, self.dropout,
                self.dtype, self.qkv_bias,
            )  # fmt: skip
            setattr(self, f"block_{i}", stage)
        self.norm = FinalNorm(
            epsilon=self.epsilon, dtype=self.dtype, pooling=self.pooling * self.norm_pooled,
            prefix=prefix,
        )  # fmt: skip
        if self.pooling == "map":
            self.map_pool = MapPool(
                self.heads, inner, self.activation, self.epsilon, self.dropout, self.dtype
            )
        self.head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros)

    def pool(self, x: jax.Array) -> jax.Array:
        if self.pooling != "map" and not self.norm_pooled:
            x = pool_tokens(x, self.pooling, self.has_class_token + self.registers)
        return x.astype(jnp.float32)

    def grid(self, x: jax.Array) -> jax.Array:
        if self.pooling == "map" or self.norm_pooled:
            raise ValueError("its tokens are pooled before the head's stage")
        tokens = x[:, self.has_class_token + self.registers :]
        side = math.isqrt(tokens.shape[1])
        return tokens.reshape(tokens.shape[0], side, side, tokens.shape[2])

    def check(self) -> None:
        for field, known in (
            ("pooling", POOLINGS), ("positions", POSITIONS),
            ("activation", (*ACTIVATIONS, SWIGLU)),
        ):  # fmt: skip
            value = getattr(self, field)
            if value not in known:
                raise UserError(
                    f"{field}: expected one of {known}, found {value!r}.{nearest(value, known)}"
                )
        if self.width % self.heads:
            raise UserError(f"{self.heads} heads do not divide the width {self.width}")
        if "token" in self.pooling and not self.has_class_token:
            raise UserError(
                f"pooling {self.pooling!r} reads the class token, but class_token is False"
            )
        if self.norm_pooled and self.pooling == "map":
            raise UserError("norm_pooled: expected False with pooling 'map', found True")


def _size(size: str) -> dict[str, Any]:
    return dict(zip(("width", "depth", "heads"), SIZES[size], strict=True))


_OPTIONS = (
    "width", "depth", "heads", "patch", "pooling", "class_token", "registers", "positions", "inner",
    "activation", "layer_scale", "pre_norm", "patch_bias", "qkv_bias", "norm_pooled", "epsilon",
)  # fmt: skip


def _fitted(entry: Entry, model: Any) -> Entry:
    """The entry of a model with another patch size, which the side of its images must divide."""
    if entry.patch == model.patch:
        return entry
    size = max(1, entry.inputs.size // model.patch) * model.patch
    inputs = dataclasses.replace(entry.inputs, size=size)
    return dataclasses.replace(entry, patch=model.patch, inputs=inputs)


def _entry(size: str, patch: int, inputs: Inputs, options: dict[str, Any], **rest: Any) -> Entry:
    # Another pooling does not take away the class token of the published weights.
    options = {"class_token": "token" in options.get("pooling", "token"), **options}
    return Entry(
        "vit", functools.partial(ViT, **_size(size), patch=patch, **options), inputs=inputs,
        patch=patch, dropout=True, options=_OPTIONS, fitted=_fitted, **rest,
    )  # fmt: skip


def _pooled(head_kind: str, **options: Any) -> ViT:
    """Builds a DINOv2 model, whose ``model.head`` chooses the pooling."""
    return ViT(pooling=head_kind, **options)


_AUGREG = {
    "vit_ti16": "tiny_patch16", "vit_s16": "small_patch16", "vit_s32": "small_patch32",
    "vit_b8": "base_patch8", "vit_b16": "base_patch16", "vit_b32": "base_patch32",
    "vit_l16": "large_patch16",
}  # fmt: skip
_GOOGLE = {
    "vit_b16": ("hf:google/vit-base-patch16-224",),
    "vit_l16": ("hf:google/vit-large-patch16-224",),
}


def _augreg(size: str, patch: int) -> Entry:
    inputs = Inputs(224, HALF, HALF, "bilinear", 0)
    return _entry(size, patch, inputs, {"activation": "gelu_tanh"}, licence="Apache-2.0")


def _vit(size: str, patch: int) -> Entry:
    name = f"vit_{size}{patch}"
    augreg = [f"hf:timm/vit_{_AUGREG[name]}_224.augreg_in21k_ft_in1k"] if name in _AUGREG else []
    weights = (*augreg, *_GOOGLE.get(name, ()))
    return _entry(
        size, patch, Inputs(224, HALF, HALF, "bicubic", 0.9), {}, weights=weights,
        licence="Apache-2.0" * bool(weights),
    )  # fmt: skip


_LONG = {
    "ti": "tiny", "s": "small", "m": "medium", "b": "base", "l": "large", "h": "huge", "g": "giant",
}  # fmt: skip


def _deit(size: str, distilled: bool) -> Entry:
    """Distilled models have a second token. Neither of their two heads is loaded."""
    kind, long = "distilled_" * distilled, _LONG[size]
    weights = (
        f"hf:timm/deit_{long}_{kind}patch16_224.fb_in1k",
        f"hf:facebook/deit-{long}-{kind.replace('_', '-')}patch16-224",
    )
    return _entry(
        size, 16, Inputs(224, interpolation="bicubic"), {"registers": int(distilled)},
        weights=weights, licence="Apache-2.0",
        **({"classes": 0, "labels": ""} if distilled else {}),
    )  # fmt: skip


def _deit3(size: str, patch: int) -> Entry:
    """DeiT III (arXiv 2204.07118): factors on the residual branches, positions of patches only."""
    return _entry(
        size, patch, Inputs(224, interpolation="bicubic", crop=0.9),
        {"positions": "patches", "layer_scale": 1e-6},
        weights=(f"hf:timm/deit3_{_LONG[size]}_patch{patch}_224.fb_in1k",), licence="Apache-2.0",
    )  # fmt: skip


def _torchvision(size: str, patch: int) -> Entry:
    """The size of a published ViT with the preprocessing of torchvision, without a source.

    torchvision publishes its files under addresses without a full checksum.
    """
    return _entry(size, patch, Inputs(224), {})


def _dinov2(size: str, registers: int) -> Entry:
    long = _LONG[size]
    build = functools.partial(
        _pooled, **_size(size), patch=14, registers=registers, positions="class", layer_scale=1e-5,
        inner=4096 if size == "g" else 0, activation="swiglu" if size == "g" else "gelu",
    )  # fmt: skip
    return Entry(
        "vit", build, inputs=Inputs(518, interpolation="bicubic", crop=1.0), classes=0, labels="",
        weights=(
            f"hf:facebook/dinov2-{'with-registers-' * bool(registers)}{long}",
            f"hf:timm/vit_{long}_patch14_{'reg4_' * bool(registers)}dinov2.lvd142m",
        ),
        licence="Apache-2.0", patch=14, dropout=True, heads=("token", "token_gap"),
    )  # fmt: skip


def _clip(size: str, patch: int, classes: int) -> Entry:
    long = _LONG[size]
    return _entry(
        size, patch, Inputs(224, CLIP_MEAN, CLIP_STD, "bicubic", 1.0),
        {"activation": "gelu_quick", "pre_norm": True, "patch_bias": False, "epsilon": 1e-5},
        classes=classes, labels="axes of the space that images and texts share", licence="MIT",
        weights=(
            f"hf:openai/clip-vit-{long}-patch{patch}",
            f"hf:timm/vit_{long}_patch{patch}_clip_224.openai",
        ),
    )  # fmt: skip


def _siglip(size: str, patch: int, side: int, weights: tuple[str, ...]) -> Entry:
    return _entry(
        size, patch, Inputs(side, HALF, HALF, "bicubic", 0),
        {"pooling": "map", "activation": "gelu_tanh", "inner": 4304 if size == "so400m" else 0},
        classes=0, labels="", weights=weights, licence="Apache-2.0",
    )  # fmt: skip


ENTRIES = {
    **{f"vit_{s}{p}": _vit(s, p) for s in ("ti", "s", "b", "l", "h") for p in (8, 14, 16, 32)},
    **{f"augreg_{s}{p}": _augreg(s, p) for s in ("ti", "s", "b", "l") for p in (16, 32)},
    **{
        f"deit_{s}16{'_distilled' * d}": _deit(s, d)
        for d in (False, True) for s in ("ti", "s", "b")
    },
    **{
        f"deit3_{s}{p}": _deit3(s, p)
        for s, p in (("s", 16), ("m", 16), ("b", 16), ("l", 16), ("h", 14))
    },
    **{f"vit_{s}{p}_torchvision": _torchvision(s, p) for s in ("b", "l") for p in (16, 32)},
    **{
        f"dinov2_{s}14{'_reg' * bool(r)}": _dinov2(s, r)
        for r in (0, 4) for s in ("s", "b", "l", "g")
    },
    "clip_vit_b32": _clip("b", 32, 512),
    "clip_vit_b16": _clip("b", 16, 512),
    "clip_vit_l14": _clip("l", 14, 768),
    "siglip_b16": _siglip("b", 16, 224, (
        "hf:google/siglip-base-patch16-224", "hf:timm/vit_base_patch16_siglip_224.webli",
    )),
    "siglip_l16": _siglip("l", 16, 256, (
        "hf:google/siglip-large-patch16-256", "hf:timm/vit_large_patch16_siglip_256.webli",
    )),
    "siglip_so400m14": _siglip("so400m", 14, 224, (
        "hf:timm/vit_so400m_patch14_siglip_224.webli",
    )),
}  # fmt: skip

GENERIC = {
    "vit": Entry(
        "vit", functools.partial(ViT), inputs=Inputs(224, HALF, HALF, "bicubic", 0.9), classes=0,
        labels="", patch=0, dropout=True, options=_OPTIONS, fitted=_fitted,
        required=("width", "depth", "heads", "patch"),
    ),
}  # fmt: skip

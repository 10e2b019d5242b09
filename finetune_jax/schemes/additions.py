"""Additions: terms that put deltas beside frozen modules."""

from __future__ import annotations

import math

from finetune_jax import deltas as deltas_lib
from finetune_jax.errors import UserError
from finetune_jax.schemes.arguments import positive, whole
from finetune_jax.schemes.masks import norm
from finetune_jax.schemes.outline import Claim, Outline

_PROJECTIONS = r"query|value|conv\d*"


def lora(
    outline: Outline,
    rank: int = 8,
    alpha: float | None = None,
    on: str = _PROJECTIONS,
    rslora: bool = False,
    dora: bool = False,
    pissa: bool = False,
    plus: float = 1.0,
) -> Claim:
    """Low-rank deltas beside kernels; see `deltas.LoRA`. Not the head: add ``head``.

    Args:
      outline: of the model.
      rank: of the deltas.
      alpha: scale times rank; default: the rank, so that the scale is 1.
      on: regex of module names or paths; by default query and value of transformers, and
        convolutions.
      rslora: scale alpha / sqrt(rank).
      dora: decompose into length and direction.
      pissa: start from the leading singular vectors.
      plus: learning rate of B over that of A.
    """
    positive("lora", plus, 1 if alpha is None else alpha)
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise UserError(f"the rank must be a whole number, found {rank!r}")
    alpha = float(rank if alpha is None else alpha)
    modules = outline.beside_head(on, "kernel")
    return Claim(
        deltas=[
            deltas_lib.LoRA(m, rank, alpha, bool(rslora), bool(dora), bool(pissa), float(plus))
            for m in modules
        ]
    )


def ia3(outline: Outline, on: str = "key|value", ff: str = "mlp_out") -> Claim:
    """Scales keys, values and the feed-forward's inner activation; see `deltas.IA3`."""
    deltas = [deltas_lib.IA3(m) for m in outline.beside_head(on, "kernel")]
    inner = outline.beside_head(ff, "kernel") if ff else []
    inner = [deltas_lib.IA3(m, inputs=True) for m in inner]
    return Claim(deltas=[*deltas, *inner])


def ssf(outline: Outline, on: str = ".*", std: float = 0.0) -> Claim:
    """Scale and shift after every operation that has a bias, but the head; see `deltas.SSF`.

    A convolution without bias is followed by a norm here, whose own scale and shift express the
    same map.
    """
    if not isinstance(std, int | float) or isinstance(std, bool) or not 0 <= std < math.inf:
        raise UserError(f"std must be a number >= 0, found {std!r}")
    modules = outline.beside_head(on, "bias")
    return Claim(deltas=[deltas_lib.SSF(m, float(std)) for m in modules])


def _transformer_blocks(outline: Outline) -> list[tuple[str, int]]:
    if not outline.blocks:
        raise UserError("this scheme needs transformer blocks; this model has no blocks")
    return [(b, outline.width(b)) for b in outline.blocks]


def houlsby(outline: Outline, size: int = 64) -> Claim:
    """Two bottlenecks per block, after attention and after the feed-forward; norms train too."""
    whole("size", size)
    deltas = [
        deltas_lib.Bottleneck(f"{block}/{module}", width, size)
        for block, width in _transformer_blocks(outline)
        for module in ("attn", "mlp_out")
    ]
    return Claim(norm(outline).leaves, deltas)


def pfeiffer(outline: Outline, size: int = 64) -> Claim:
    """One bottleneck per block, after the feed-forward and its residual sum."""
    whole("size", size)
    return Claim(
        deltas=[
            deltas_lib.Bottleneck(block, width, size, act="relu")
            for block, width in _transformer_blocks(outline)
        ]
    )


def adaptformer(outline: Outline, size: int = 64, scale: float = 0.1) -> Claim:
    """A bottleneck parallel to each block's feed-forward; see `deltas.AdaptFormer`."""
    whole("size", size)
    positive("scale", scale)
    entry = "mlp_in" if outline.post_norm_text else "norm2"
    return Claim(
        deltas=[
            deltas_lib.AdaptFormer(
                f"{block}/{entry}", width, size, float(scale), "relu", f"{block}/mlp_out"
            )
            for block, width in _transformer_blocks(outline)
        ]
    )


def vpt(outline: Outline, tokens: int = 5, deep: bool = False) -> Claim:
    """Visual prompt tuning, shallow or deep; see `deltas.Prompt`."""
    whole("tokens", tokens)
    if "stem/word/embedding" in outline.leaves:
        raise UserError(
            "vpt: expected a model of images, found one of texts, whose mask and positions the "
            "prompts would not fit"
        )
    blocks = _transformer_blocks(outline)
    patch = outline.leaves.get("stem/embedding/kernel")
    inputs = math.prod(patch.shape[:-1]) if patch is not None else blocks[0][1]
    prefix = ("stem/class_token", "stem/register_tokens")
    offset = sum(outline.leaves[p].shape[1] for p in prefix if p in outline.leaves)
    last = blocks[-1][0]
    return Claim(
        deltas=[
            deltas_lib.Prompt(b, width, tokens, inputs, offset, b if deep else last)
            for b, width in (blocks if deep else blocks[:1])
        ]
    )


TERMS = (lora, ia3, ssf, houlsby, pfeiffer, adaptformer, vpt)

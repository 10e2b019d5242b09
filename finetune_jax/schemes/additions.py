"""Additions: terms that put deltas beside frozen modules."""

from __future__ import annotations

import math

from finetune_jax.deltas import IA3, SSF, AdaptFormer, Bottleneck, Delta, LoRA, Prompt
from finetune_jax.errors import UserError
from finetune_jax.schemes.arguments import positive, positive_int
from finetune_jax.schemes.masks import norm
from finetune_jax.schemes.model_spec import ModelSpec, Selection

_PROJECTIONS = r"query|value|conv\d*"


def lora(
    spec: ModelSpec,
    rank: int = 8,
    alpha: float | None = None,
    on: str = _PROJECTIONS,
    rslora: bool = False,
    dora: bool = False,
    pissa: bool = False,
    plus: float = 1.0,
) -> Selection:
    """Low-rank deltas beside kernels, except the head's; see `deltas.LoRA`.

    Args:
      spec: the model's spec.
      rank: rank of the deltas.
      alpha: scale times rank; None takes the rank, so that the scale is 1.
      on: regex of module names or paths; by default query and value of transformers, and
        convolutions.
      rslora: whether the scale is alpha / sqrt(rank).
      dora: whether to decompose the kernel into length and direction.
      pissa: whether to start from the leading singular vectors of the kernel.
      plus: ratio of the learning rate of B to the learning rate of A.

    Raises:
      UserError: an argument has another type or is out of range, or `on` matches no module.
    """
    positive("plus and alpha", plus, 1 if alpha is None else alpha)
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise UserError(f"the rank must be a whole number, found {rank!r}")
    alpha = float(rank if alpha is None else alpha)
    modules = spec.body_modules(on, "kernel")
    return Selection(
        deltas=[
            LoRA(m, rank, alpha, bool(rslora), bool(dora), bool(pissa), float(plus))
            for m in modules
        ]
    )


def ia3(spec: ModelSpec, on: str = "key|value", ff: str = "mlp_out") -> Selection:
    """Scales keys, values and the input of the feed-forward's last layer; see `deltas.IA3`.

    Args:
      spec: the model's spec.
      on: regex of the modules whose output is scaled.
      ff: regex of the modules whose input is scaled; empty for none.
    """
    outputs = [IA3(m) for m in spec.body_modules(on, "kernel")]
    inputs = [IA3(m, inputs=True) for m in spec.body_modules(ff, "kernel")] if ff else []
    return Selection(deltas=[*outputs, *inputs])


def ssf(spec: ModelSpec, on: str = ".*", std: float = 0.0) -> Selection:
    """Scale and shift after every operation with a bias, except the head; see `deltas.SSF`.

    A convolution without bias needs no delta: a norm follows the convolution, and the norm's scale
    and shift express the same map.

    Raises:
      UserError: `std` is no number of at least 0, or `on` matches no module with a bias.
    """
    if not isinstance(std, int | float) or isinstance(std, bool) or not 0 <= std < math.inf:
        raise UserError(f"std must be a number >= 0, found {std!r}")
    return Selection(deltas=[SSF(m, float(std)) for m in spec.body_modules(on, "bias")])


def _transformer_blocks(spec: ModelSpec) -> list[tuple[str, int]]:
    """(block, width) of each transformer block."""
    if not spec.blocks:
        raise UserError("this scheme needs transformer blocks; this model has no blocks")
    return [(b, spec.width(b)) for b in spec.blocks]


def houlsby(spec: ModelSpec, size: int = 64) -> Selection:
    """Two bottlenecks per block, after attention and after the feed-forward; norms train too."""
    positive_int("size", size)
    deltas = [
        Bottleneck(f"{block}/{module}", width, size)
        for block, width in _transformer_blocks(spec)
        for module in ("attn", "mlp_out")
    ]
    return Selection(norm(spec).leaves, deltas)


def pfeiffer(spec: ModelSpec, size: int = 64) -> Selection:
    """One bottleneck per block, after the residual sum of the feed-forward."""
    positive_int("size", size)
    deltas = [Bottleneck(b, width, size, act="relu") for b, width in _transformer_blocks(spec)]
    return Selection(deltas=deltas)


def adaptformer(spec: ModelSpec, size: int = 64, scale: float = 0.1) -> Selection:
    """A bottleneck parallel to each block's feed-forward; see `deltas.AdaptFormer`."""
    positive_int("size", size)
    positive("scale", scale)
    reads = "mlp_in" if spec.post_norm_text else "norm2"
    deltas = [
        AdaptFormer(f"{block}/{reads}", width, size, float(scale), "relu", f"{block}/mlp_out")
        for block, width in _transformer_blocks(spec)
    ]
    return Selection(deltas=deltas)


def vpt(spec: ModelSpec, tokens: int = 5, deep: bool = False) -> Selection:
    """Visual prompt tuning, shallow or deep; see `deltas.Prompt`.

    Raises:
      UserError: `tokens` is no whole number above 0, or the model reads texts.
    """
    positive_int("tokens", tokens)
    if "stem/word/embedding" in spec.leaves:
        raise UserError(
            "vpt: expected a model of images, found a model of texts, whose mask and positions "
            "have no place for prompts"
        )
    blocks = _transformer_blocks(spec)
    patch = spec.leaves.get("stem/embedding/kernel")
    patch_inputs = math.prod(patch.shape[:-1]) if patch is not None else blocks[0][1]
    prefix = ("stem/class_token", "stem/register_tokens")
    offset = sum(spec.leaves[p].shape[1] for p in prefix if p in spec.leaves)
    last = blocks[-1][0]
    deltas: list[Delta] = [
        Prompt(b, width, tokens, patch_inputs, offset, b if deep else last)
        for b, width in (blocks if deep else blocks[:1])
    ]
    return Selection(deltas=deltas)


def deltas(spec: ModelSpec) -> Selection:
    """Trains the deltas that are in place: those of ``pretrained.adapter`` and of earlier phases.

    Raises:
      UserError: no delta is in place.
    """
    if not spec.deltas:
        raise UserError(
            "no deltas are in place: set pretrained.adapter, or add some, as lora(rank=8) does"
        )
    return Selection(deltas=spec.deltas)


TERMS = (lora, ia3, ssf, houlsby, pfeiffer, adaptformer, vpt, deltas)

"""The named schemes: each says which leaves of a model train, at what rate, or what is added.

A scheme is a function of the model's `Outline` and its own arguments that returns a `Claim`. It
decides nothing else: groups, decay and BatchNorm modes belong to the plan.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from finetune_jax import deltas as deltas_lib
from finetune_jax.deltas import Delta
from finetune_jax.errors import UserError, nearest

_NORM = re.compile(r"(?:.*/)?norm\d*/(?:scale|bias)")


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a scheme may know of a model.

    Attributes:
      stages: names in forward order.
      leaves: shape structs by leaf path, in forward order of stages.
    """

    stages: tuple[str, ...]
    leaves: Mapping[str, Any]

    @property
    def paths(self) -> tuple[str, ...]:
        """All leaf paths."""
        return tuple(self.leaves)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The repeated stages, in forward order: those whose name ends in a block number."""
        return tuple(s for s in self.stages if re.search(r"block_?\d+$", s))

    @property
    def layers(self) -> dict[str, int]:
        """Layer number of each stage: 0 before the first block, then one per block, then the rest.

        The numbering of layer-wise learning rate decay: with n blocks, the final norm and the head
        share the number n + 1.
        """
        blocks, numbers, seen = self.blocks, {}, 0
        for stage in self.stages:
            if stage in blocks:
                seen = blocks.index(stage) + 1
                numbers[stage] = seen
            else:
                numbers[stage] = 0 if not seen else len(blocks) + 1
        return numbers

    def of_stages(self, stages: Sequence[str]) -> list[str]:
        """The leaf paths of some stages."""
        return [p for p in self.paths if p.split("/", 1)[0] in stages]

    def modules(self, on: str, leaf: str) -> list[str]:
        """Paths of modules with a leaf called `leaf` whose own name or whole path matches `on`."""
        found = [p.rsplit("/", 1)[0] for p in self.paths if p.endswith(f"/{leaf}")]
        try:
            matched = [
                m for m in found if re.fullmatch(on, m) or re.fullmatch(on, m.rsplit("/", 1)[-1])
            ]
        except (re.error, TypeError) as error:
            raise UserError(f"on={on!r}: not a regular expression: {error}") from None
        if not matched:
            names = sorted({m.rsplit("/", 1)[-1] for m in found})
            raise UserError(f"on={on!r} matches no module with a {leaf!r}.{nearest(on, names)}")
        return matched

    def width(self, block: str) -> int:
        """Width of the tokens of a transformer block."""
        path = f"{block}/attn/query/kernel"
        if path not in self.leaves:
            raise UserError(f"this scheme needs transformer blocks; {block!r} has no {path!r}")
        return self.leaves[path].shape[0]


@dataclasses.dataclass(frozen=True)
class Claim:
    """What one term of a scheme asks for.

    Attributes:
      leaves: paths of base leaves that train.
      deltas: parameters to add.
      rates: factor on the learning rate by path, for a term that claims nothing itself.
      measured: (statistic, settings) when the rates are measured on data during the run.
    """

    leaves: Sequence[str] = ()
    deltas: Sequence[Delta] = ()
    rates: Mapping[str, float] | None = None
    measured: tuple[str, tuple[tuple[str, Any], ...]] | None = None


# Masks ------------------------------------------------------------------------------------------


def full(outline: Outline) -> Claim:
    """Everything of the base trains.

    A delta that an earlier phase added stays as it is, unless its own term is named beside.
    """
    return Claim(outline.paths)


def head(outline: Outline) -> Claim:
    """The head."""
    return Claim(outline.of_stages(("head",)))


def linear_probe(outline: Outline) -> Claim:
    """Only the head trains (Kornblith et al. 2019, arXiv 1805.08974)."""
    return head(outline)


def _block_count(outline: Outline, k: int, name: str) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= len(outline.blocks):
        raise UserError(
            f"{name}(k): k must be a whole number from 1 to {len(outline.blocks)}, the number of "
            f"blocks of this model; found {k!r}"
        )
    return k


def last_k(outline: Outline, k: int) -> Claim:
    """The last k blocks and all that follows them: final norm and head (VPT's Partial-k)."""
    first = outline.blocks[-_block_count(outline, k, "last_k")]
    return Claim(outline.of_stages(outline.stages[outline.stages.index(first) :]))


def first_k(outline: Outline, k: int) -> Claim:
    """The first k blocks and all that precedes them (the stem). Not the head: add ``head``."""
    last = outline.blocks[_block_count(outline, k, "first_k") - 1]
    return Claim(outline.of_stages(outline.stages[: outline.stages.index(last) + 1]))


def stages(outline: Outline, *names: str) -> Claim:
    """Exactly the stages whose whole name matches one of the regexes: surgical fine-tuning.

    Lee et al. 2022, arXiv 2210.11466: ``stages('stem', 'layer1_.*')``.
    """
    chosen: list[str] = []
    if not names:
        raise UserError("stages(...) needs at least one stage name, such as stages('stem')")
    for name in names:
        try:
            matched = [s for s in outline.stages if re.fullmatch(name, s)]
        except (re.error, TypeError) as error:
            raise UserError(f"stages({name!r}): not a regular expression: {error}") from None
        if not matched:
            raise UserError(f"stages({name!r}) matches no stage.{nearest(name, outline.stages)}")
        chosen += matched
    return Claim(outline.of_stages(chosen))


def norm(outline: Outline) -> Claim:
    """Scale and bias of every normalisation layer."""
    norms = [p for p in outline.paths if _NORM.fullmatch(p)]
    if not norms:
        raise UserError("norm: this model has no normalisation layer")
    return Claim(norms)


def norm_only(outline: Outline) -> Claim:
    """Scale and bias of every normalisation layer, and the head (arXiv 2003.00152)."""
    return Claim([*norm(outline).leaves, *head(outline).leaves])


def bias_only(outline: Outline, on: str = ".*") -> Claim:
    """Every bias, and the whole head: BitFit (Ben Zaken et al. 2021, arXiv 2106.10199).

    Args:
      outline: of the model.
      on: regex of the modules whose bias trains; ``'query|mlp_in'`` is the paper's smaller variant.
    """
    biases = [f"{m}/bias" for m in _beside_head(outline, on, "bias")]
    return Claim([*biases, *head(outline).leaves])


# Learning rates ---------------------------------------------------------------------------------


def _by_layer(outline: Outline, rate: Callable[[int, int], float]) -> Claim:
    layers = outline.layers
    top = max(layers.values())
    rates = {s: rate(number, top) for s, number in layers.items()}
    return Claim(rates={p: rates[p.split("/", 1)[0]] for p in outline.paths})


def _positive(name: str, *values: Any) -> None:
    for value in values:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not (good and 0 < value < math.inf):
            raise UserError(f"{name}: expected numbers > 0, found {value!r}")


def _whole(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be a whole number >= {least}, found {value!r}")
    return value


def _beside_head(outline: Outline, on: str, leaf: str) -> list[str]:
    """`Outline.modules` without the head, which trains as itself."""
    modules = [m for m in outline.modules(on, leaf) if m.split("/", 1)[0] != "head"]
    if not modules:
        raise UserError(f"on={on!r} matches the head alone; add the term 'head' to train it")
    return modules


def llrd(outline: Outline, decay: float) -> Claim:
    """Layer-wise learning rate decay: decay^(top - layer), as in ELECTRA and BEiT (2106.08254).

    `Outline.layers` numbers the layers: head and final norm 1, the last block decay, …, the stem
    decay^(n + 1).
    """
    _positive("llrd", decay)
    return _by_layer(outline, lambda layer, top: decay ** (top - layer))


def discriminative(outline: Outline, factor: float = 2.6) -> Claim:
    """Each layer learns `factor` times slower than the next: ULMFiT (arXiv 1801.06146)."""
    _positive("discriminative", factor)
    return _by_layer(outline, lambda layer, top: factor ** (layer - top))


def slice(outline: Outline, start: float, stop: float | None = None) -> Claim:  # noqa: A001
    """fastai's ``slice`` as factors on the run's learning rate.

    ``slice(a, b)``: geometric from a at the first layer to b at the last. ``slice(b)``: b for the
    last layer, b/10 for all others.
    """
    if stop is None:
        _positive("slice", start)
        return _by_layer(outline, lambda layer, top: start if layer == top else start / 10)
    _positive("slice", start, stop)
    return _by_layer(outline, lambda layer, top: start * (stop / start) ** (layer / top))


def auto_rgn(outline: Outline, batches: int = 5) -> Claim:
    """Rates by relative gradient norm, measured before every epoch (arXiv 2210.11466).

    Per tensor, the mean of ‖g‖/‖w‖ over `batches` training batches, divided by the largest. As in
    the released code, normalisation layers never train.
    """
    _whole("batches", batches)
    leaves = [p for p in outline.paths if not _NORM.fullmatch(p)]
    return Claim(leaves, measured=("rgn", (("batches", batches),)))


def auto_snr(outline: Outline, batches: int = 5, threshold: float = 0.95) -> Claim:
    """Tensors whose gradient's signal-to-noise ratio is high train (arXiv 2210.11466).

    Per tensor, |mean g|² over the sum of the variances of its scalars over `batches` batches,
    divided by the largest; below `threshold` the rate is 0.
    """
    # The variance over one batch is nothing.
    _whole("batches", batches, least=2)
    _positive("threshold", threshold)
    leaves = [p for p in outline.paths if not _NORM.fullmatch(p)]
    settings = (("batches", batches), ("threshold", float(threshold)))
    return Claim(leaves, measured=("snr", settings))


# Deltas -----------------------------------------------------------------------------------------

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
    _positive("lora", plus, 1 if alpha is None else alpha)
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise UserError(f"the rank must be a whole number, found {rank!r}")
    alpha = float(rank if alpha is None else alpha)
    modules = _beside_head(outline, on, "kernel")
    return Claim(
        deltas=[
            deltas_lib.LoRA(m, rank, alpha, bool(rslora), bool(dora), bool(pissa), float(plus))
            for m in modules
        ]
    )


def ia3(outline: Outline, on: str = "key|value", ff: str = "mlp_out") -> Claim:
    """Scales keys, values and the feed-forward's inner activation; see `deltas.IA3`."""
    deltas = [deltas_lib.IA3(m) for m in _beside_head(outline, on, "kernel")]
    inner = _beside_head(outline, ff, "kernel") if ff else []
    inner = [deltas_lib.IA3(m, inputs=True) for m in inner]
    return Claim(deltas=[*deltas, *inner])


def ssf(outline: Outline, on: str = ".*", std: float = 0.0) -> Claim:
    """Scale and shift after every operation that has a bias, but the head; see `deltas.SSF`.

    A convolution without bias is followed by a norm here, whose own scale and shift express the
    same map.
    """
    if not isinstance(std, int | float) or isinstance(std, bool) or not 0 <= std < math.inf:
        raise UserError(f"std must be a number >= 0, found {std!r}")
    modules = _beside_head(outline, on, "bias")
    return Claim(deltas=[deltas_lib.SSF(m, float(std)) for m in modules])


def _transformer_blocks(outline: Outline) -> list[tuple[str, int]]:
    if not outline.blocks:
        raise UserError("this scheme needs transformer blocks; this model has no blocks")
    return [(b, outline.width(b)) for b in outline.blocks]


def houlsby(outline: Outline, size: int = 64) -> Claim:
    """Two bottlenecks per block, after attention and after the feed-forward; norms train too."""
    _whole("size", size)
    deltas = [
        deltas_lib.Bottleneck(f"{block}/{module}", width, size)
        for block, width in _transformer_blocks(outline)
        for module in ("attn", "mlp_out")
    ]
    return Claim(norm(outline).leaves, deltas)


def pfeiffer(outline: Outline, size: int = 64) -> Claim:
    """One bottleneck per block, after the feed-forward and its residual sum."""
    _whole("size", size)
    return Claim(
        deltas=[
            deltas_lib.Bottleneck(block, width, size, act="relu")
            for block, width in _transformer_blocks(outline)
        ]
    )


def adaptformer(outline: Outline, size: int = 64, scale: float = 0.1) -> Claim:
    """A bottleneck parallel to each block's feed-forward; see `deltas.AdaptFormer`."""
    _whole("size", size)
    _positive("scale", scale)
    return Claim(
        deltas=[
            deltas_lib.AdaptFormer(
                f"{block}/norm2", width, size, float(scale), "relu", f"{block}/mlp_out"
            )
            for block, width in _transformer_blocks(outline)
        ]
    )


def vpt(outline: Outline, tokens: int = 5, deep: bool = False) -> Claim:
    """Visual prompt tuning, shallow or deep; see `deltas.Prompt`."""
    _whole("tokens", tokens)
    blocks = _transformer_blocks(outline)
    patch = outline.leaves.get("stem/embedding/kernel")
    inputs = math.prod(patch.shape[:-1]) if patch is not None else blocks[0][1]
    offset = int("stem/class_token" in outline.leaves)
    last = blocks[-1][0]
    return Claim(
        deltas=[
            deltas_lib.Prompt(b, width, tokens, inputs, offset, b if deep else last)
            for b, width in (blocks if deep else blocks[:1])
        ]
    )


def random_mask(outline: Outline, of: str, seed: int = 0) -> Claim:
    """Control arm: as many trainable scalars as the scheme `of`, at random places.

    The head trains as `of` trains it; all other scalars are drawn evenly over the base's leaves
    outside the head (Ben Zaken et al. 2021, arXiv 2106.10199, table 3). Under the policy ``frozen``
    no BatchNorm follows the batches, as under a scheme that leaves their scales and biases alone.
    """
    from finetune_jax.schemes.resolve import claim_all

    if not isinstance(of, str):
        raise UserError(f"random_mask: expected the text of a scheme, found {of!r}")
    _whole("seed", seed, least=0)
    claim = claim_all(of, outline)
    heads = [p for p in claim.leaves if p.split("/", 1)[0] == "head"]
    count = sum(math.prod(outline.leaves[p].shape) for p in {*claim.leaves} - {*heads})
    for delta in claim.deltas:
        added = delta.leaves(outline.leaves).values()
        count += sum(math.prod(leaf.shape) for leaf in added if leaf.trains)
    body = [p for p in outline.paths if p.split("/", 1)[0] != "head"]
    sizes = [math.prod(outline.leaves[p].shape) for p in body]
    if not 0 < count <= sum(sizes):
        raise UserError(
            f"random_mask: {of!r} trains {count} scalars outside the head; expected 1 to "
            f"{sum(sizes)}"
        )
    generator = np.random.Generator(np.random.Philox(seed))
    shares = generator.multivariate_hypergeometric(sizes, count, method="marginals")
    deltas = []
    for path, share in zip(body, shares, strict=True):
        module, _, leaf = path.rpartition("/")
        if share:
            deltas.append(deltas_lib.Sparse(module, leaf, int(share), seed))
    return Claim(heads, deltas)


SCHEMES: dict[str, Callable[..., Claim]] = {
    f.__name__: f
    for f in (
        full, linear_probe, head, last_k, first_k, stages, norm, norm_only, bias_only, random_mask,
        llrd, discriminative, slice, auto_rgn, auto_snr,
        lora, ia3, ssf, houlsby, pfeiffer, adaptformer, vpt,
    )
}  # fmt: skip

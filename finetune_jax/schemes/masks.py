"""Masks: terms that claim leaves of the base, or single scalars of them."""

from __future__ import annotations

import math
import re

import numpy as np

from finetune_jax.deltas import Sparse
from finetune_jax.errors import UserError, nearest
from finetune_jax.schemes.arguments import whole
from finetune_jax.schemes.outline import NORM, Claim, Outline


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
    norms = [p for p in outline.paths if NORM.fullmatch(p)]
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
    biases = [f"{m}/bias" for m in outline.beside_head(on, "bias")]
    return Claim([*biases, *head(outline).leaves])


def random_mask(outline: Outline, of: str, seed: int = 0) -> Claim:
    """Control arm: as many trainable scalars as the scheme `of`, at random places.

    The head trains as `of` trains it; all other scalars are drawn evenly over the base's leaves
    outside the head (Ben Zaken et al. 2021, arXiv 2106.10199, table 3). Under the policy ``frozen``
    no BatchNorm follows the batches, as under a scheme that leaves their scales and biases alone.
    """
    from finetune_jax.schemes.resolve import claim_all

    if not isinstance(of, str):
        raise UserError(f"random_mask: expected the text of a scheme, found {of!r}")
    whole("seed", seed, least=0)
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
            deltas.append(Sparse(module, leaf, int(share), seed))
    return Claim(heads, deltas)


TERMS = (full, linear_probe, head, last_k, first_k, stages, norm, norm_only, bias_only, random_mask)

"""Masks: terms that select leaves of the base, or single scalars of these leaves."""

from __future__ import annotations

import math
import re

import numpy as np

from finetune_jax.deltas import Sparse
from finetune_jax.errors import UserError, nearest
from finetune_jax.schemes.arguments import non_negative_int
from finetune_jax.schemes.model_spec import NORM, ModelSpec, Selection


def full(spec: ModelSpec) -> Selection:
    """Every leaf of the base trains.

    Deltas of an earlier phase stay frozen, unless the scheme also names the deltas' own term.
    """
    return Selection(spec.paths)


def head(spec: ModelSpec) -> Selection:
    """The head trains."""
    return Selection(spec.leaves_of(("head",)))


def linear_probe(spec: ModelSpec) -> Selection:
    """Only the head trains (Kornblith et al. 2019, arXiv 1805.08974)."""
    return head(spec)


def _block_count(spec: ModelSpec, k: int) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= len(spec.blocks):
        raise UserError(
            f"k must be a whole number from 1 to {len(spec.blocks)}, the number of "
            f"blocks of this model; found {k!r}"
        )
    return k


def last_k(spec: ModelSpec, k: int) -> Selection:
    """The last k blocks and all stages after them: final norm and head (VPT's Partial-k)."""
    first = spec.blocks[-_block_count(spec, k)]
    return Selection(spec.leaves_of(spec.stages[spec.stages.index(first) :]))


def first_k(spec: ModelSpec, k: int) -> Selection:
    """The first k blocks and all stages before them (the stem). For the head, add ``head``."""
    last = spec.blocks[_block_count(spec, k) - 1]
    return Selection(spec.leaves_of(spec.stages[: spec.stages.index(last) + 1]))


def stages(spec: ModelSpec, *names: str) -> Selection:
    """The stages whose whole name matches one of the regexes: surgical fine-tuning.

    Lee et al. 2022, arXiv 2210.11466: ``stages('stem', 'layer1_.*')``.

    Raises:
      UserError: no name is given, a name is no regular expression, or it matches no stage.
    """
    chosen: list[str] = []
    if not names:
        raise UserError("expected at least one stage name, such as stages('stem')")
    for name in names:
        try:
            matched = [s for s in spec.stages if re.fullmatch(name, s)]
        except (re.error, TypeError) as error:
            raise UserError(f"{name!r} is not a regular expression: {error}") from None
        if not matched:
            raise UserError(f"{name!r} matches no stage.{nearest(name, spec.stages)}")
        chosen += matched
    return Selection(spec.leaves_of(chosen))


def norm(spec: ModelSpec) -> Selection:
    """Scale and bias of every normalisation layer.

    Raises:
      UserError: the model has no normalisation layer.
    """
    norms = [p for p in spec.paths if NORM.fullmatch(p)]
    if not norms:
        raise UserError("this model has no normalisation layer")
    return Selection(norms)


def norm_only(spec: ModelSpec) -> Selection:
    """Scale and bias of every normalisation layer, and the head (arXiv 2003.00152)."""
    return Selection([*norm(spec).leaves, *head(spec).leaves])


def bias_only(spec: ModelSpec, on: str = ".*") -> Selection:
    """Every bias, and the whole head: BitFit (Ben Zaken et al. 2021, arXiv 2106.10199).

    Args:
      spec: the model's spec.
      on: regex of the modules whose bias trains; ``'query|mlp_in'`` is the paper's smaller variant.
    """
    biases = [f"{m}/bias" for m in spec.body_modules(on, "bias")]
    return Selection([*biases, *head(spec).leaves])


def random_mask(spec: ModelSpec, of: str, seed: int = 0) -> Selection:
    """Control arm: as many trainable scalars as the scheme `of`, at random places.

    The head trains as in `of`. All other scalars are drawn evenly over the base's leaves outside
    the head (Ben Zaken et al. 2021, arXiv 2106.10199, table 3). Under the BatchNorm policy
    ``frozen`` no BatchNorm follows the batches, as with a scheme in which no BatchNorm's scale or
    bias trains.

    Args:
      spec: the model's spec.
      of: text of a scheme of one phase.
      seed: seed of the draw, >= 0.

    Raises:
      UserError: `of` or `seed` is invalid, or `of` trains no scalar, or too many, outside the head.
    """
    if not isinstance(of, str):
        raise UserError(f"expected the text of a scheme, found {of!r}")
    non_negative_int("seed", seed)
    selection = spec.select(of)
    heads = [p for p in selection.leaves if p.split("/", 1)[0] == "head"]
    count = sum(math.prod(spec.leaves[p].shape) for p in {*selection.leaves} - {*heads})
    for delta in selection.deltas:
        added = delta.leaves(spec.leaves).values()
        count += sum(math.prod(leaf.shape) for leaf in added if leaf.trains)
    body = [p for p in spec.paths if p.split("/", 1)[0] != "head"]
    sizes = [math.prod(spec.leaves[p].shape) for p in body]
    if not 0 < count <= sum(sizes):
        raise UserError(
            f"{of!r} trains {count} scalars outside the head; expected 1 to {sum(sizes)}"
        )
    generator = np.random.Generator(np.random.Philox(seed))
    counts = generator.multivariate_hypergeometric(sizes, count, method="marginals")
    deltas = []
    for path, leaf_count in zip(body, counts, strict=True):
        module, _, leaf = path.rpartition("/")
        if leaf_count:
            deltas.append(Sparse(module, leaf, int(leaf_count), seed))
    return Selection(heads, deltas)


TERMS = (full, linear_probe, head, last_k, first_k, stages, norm, norm_only, bias_only, random_mask)

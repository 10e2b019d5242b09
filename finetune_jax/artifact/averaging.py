"""Weights between and among fine-tuned models: WiSE-FT and model soups.

Wortsman et al. 2021 (arXiv 2109.01903) interpolate two fine-tuned models, Wortsman et al. 2022
(arXiv 2203.05482) average many, all of them or those that help on validation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_jax import tree
from finetune_jax.artifact.folder import Artifact
from finetune_jax.deltas import Adapted, merge, unmergeable
from finetune_jax.errors import UserError

Variables = dict[str, Any]


def average(members: Sequence[Variables], weights: Sequence[float]) -> Variables:
    """Weighted mean, leaf by leaf.

    A leaf that is bit-identical in all members stays so, and a weight of 1 gives that member's
    leaves exactly: nothing is computed that rounding could change.

    Args:
      members: variables of one structure.
      weights: one each, summing to 1.

    Raises:
      UserError: other leaves or shapes, with the first that differs.
      ValueError: the weights do not fit.
    """
    if len(weights) != len(members) or abs(sum(weights) - 1) > 1e-9:
        raise ValueError(f"expected {len(members)} weights that sum to 1, found {weights}")
    flat = [{p: np.asarray(x) for p, x in tree.flatten(m).items()} for m in members]
    for other in flat[1:]:
        _same_leaves(flat[0], other)
    if 1.0 in weights:
        return tree.unflatten(flat[list(weights).index(1.0)])

    def mean(path: str) -> np.ndarray:
        leaves = [f[path] for f in flat]
        if all(_identical(leaves[0], x) for x in leaves[1:]):
            return leaves[0]
        total = np.zeros(leaves[0].shape, np.float64)
        for weight, leaf in zip(weights, leaves, strict=True):
            total += weight * leaf.astype(np.float64)
        return total.astype(leaves[0].dtype)

    return tree.unflatten({path: mean(path) for path in flat[0]})


def differing(members: Sequence[Variables]) -> set[str]:
    """Paths, with their collection, of leaves that are not bit-identical in all members."""
    flat = [tree.flatten(m) for m in members]
    return {p for p, x in flat[0].items() if not all(_identical(x, f[p]) for f in flat[1:])}


def uniform(count: int) -> list[float]:
    """Equal weights."""
    return [1 / count] * count


def greedy(
    members: Sequence[Variables],
    scores: Sequence[float],
    score: Callable[[Variables], tuple[float, Variables]],
) -> tuple[list[int], Variables, float]:
    """Adds members from the best down, keeping each whose addition does not lower the score.

    Args:
      members: variables.
      scores: of each by itself, on validation, higher is better.
      score: makes weights ready for use (statistics) and scores them on validation.

    Returns:
      (numbers of the members kept, their average made ready, its score).
    """
    order = sorted(range(len(members)), key=lambda i: -scores[i])
    kept, best = [order[0]], scores[order[0]]
    current = members[order[0]]
    for number in order[1:]:
        tried = average([members[i] for i in [*kept, number]], uniform(len(kept) + 1))
        value, ready = score(tried)
        if value >= best:
            kept, best, current = [*kept, number], value, ready
    return kept, current, best


def comparable(artifacts: Sequence[Artifact], names: Sequence[str]) -> list[Artifact]:
    """The artifacts with weights of one structure: deltas are folded into the base where they can.

    The average of low-rank factors is not the average of their products, so merging comes first.
    Deltas that cannot be merged are averaged leaf by leaf if all members have the same.

    Args:
      artifacts: at least two.
      names: for messages.

    Raises:
      UserError: another model, task, preprocessing, or deltas.
    """
    first = artifacts[0]
    for artifact, name in zip(artifacts[1:], names[1:], strict=True):
        for what, ours, theirs in (
            ("model", first.card["model"], artifact.card["model"]),
            ("task", first.task, artifact.task),
            ("preprocessing", first.preprocess, artifact.preprocess),
        ):
            if ours != theirs:
                raise UserError(
                    f"{name} cannot be averaged with {names[0]}: its {what} is {theirs}, not {ours}"
                )
    if not any(unmergeable(a.model.model, a.model.deltas) for a in artifacts):
        return [_merged(artifact) for artifact in artifacts]
    for artifact, name in zip(artifacts[1:], names[1:], strict=True):
        if artifact.model.deltas != first.model.deltas:
            raise UserError(
                f"{name} has other deltas than {names[0]}, and not all can be merged into the base"
            )
    return list(artifacts)


def _merged(artifact: Artifact) -> Artifact:
    if not artifact.model.deltas:
        return artifact
    variables, _ = merge(artifact.model, artifact.variables)
    return dataclasses.replace(artifact, model=Adapted(artifact.model.model), variables=variables)


def _same_leaves(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    for path in sorted({*ours, *theirs}):
        found = [x[path].shape if path in x else "nothing" for x in (ours, theirs)]
        if found[0] != found[1]:
            raise UserError(f"the members differ at {path}: {found[0]} and {found[1]}")


def _identical(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

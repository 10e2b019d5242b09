"""Averages of the weights of fine-tuned models: WiSE-FT and model soups.

WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903) interpolates between two models. A model soup
(Wortsman et al. 2022, arXiv 2203.05482) is the average of many models: a uniform soup of all
models, a greedy soup of the models that do not lower the score on validation.
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
from finetune_jax.pretrained.values import require_good_values
from finetune_jax.quantization import dequantize

Variables = dict[str, Any]


def average(members: Sequence[Variables], weights: Sequence[float]) -> Variables:
    """Returns the weighted mean of each leaf.

    A leaf that is bit-identical in all members is returned unchanged, and a weight of 1 returns the
    leaves of that member: these leaves are not computed, so they are not rounded.

    Args:
      members: variables with the same leaf paths and shapes.
      weights: weight of each member, with sum 1.

    Raises:
      UserError: members with different leaf paths or shapes; names the first different leaf. Or an
        average that is not finite.
      ValueError: another number of weights, or another sum.
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

    result = tree.unflatten({path: mean(path) for path in flat[0]})
    require_good_values(result, "the average")
    return result


def differing(members: Sequence[Variables]) -> set[str]:
    """Returns the leaf paths, with their collection, of leaves that differ between the members."""
    flat = [tree.flatten(m) for m in members]
    return {p for p, x in flat[0].items() if not all(_identical(x, f[p]) for f in flat[1:])}


def uniform(count: int) -> list[float]:
    """Returns equal weights with sum 1."""
    return [1 / count] * count


def greedy(
    members: Sequence[Variables],
    scores: Sequence[float],
    score: Callable[[Variables], tuple[float, Variables]],
) -> tuple[list[int], Variables, float]:
    """Greedy soup: adds members from the best to the worst unless the score becomes lower.

    Args:
      members: variables of each member.
      scores: score of each member on validation; higher is better.
      score: function of variables to (score on validation, the variables with recomputed BatchNorm
        statistics).

    Returns:
      (indices of the kept members, their average with recomputed statistics, its score).
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


def _differences(first: Any, other: Any) -> str:
    """The fields in which two dicts or dataclasses differ, such as ``dtype: 'a' -> 'b'``."""
    if type(first) is not type(other):
        return f"{type(first).__name__} -> {type(other).__name__}"
    ours, theirs = (x if isinstance(x, dict) else vars(x) for x in (first, other))
    differs = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return "; ".join(f"{key}: {ours.get(key)!r} -> {theirs.get(key)!r:.200}" for key in differs)


def comparable(artifacts: Sequence[Artifact], names: Sequence[str]) -> list[Artifact]:
    """Returns the artifacts with weights of one structure, which can be averaged.

    Quantized leaves are dequantized. Deltas are merged into the base if all of them can be merged,
    because the average of low-rank factors is not the average of their products. Deltas that cannot
    be merged are averaged leaf by leaf; all members must then have the same deltas.

    Args:
      artifacts: the members, at least two.
      names: name of each member, for messages.

    Raises:
      UserError: members with different models, tasks, preprocessing or deltas, or with leaves that
        are not finite.
    """
    artifacts = [_dequantized(artifact) for artifact in artifacts]
    for artifact, name in zip(artifacts, names, strict=True):
        require_good_values(artifact.variables, f"{name} cannot be averaged")
    first = artifacts[0]
    for artifact, name in zip(artifacts[1:], names[1:], strict=True):
        for what, ours, theirs in (
            ("model", first.card["model"], artifact.card["model"]),
            ("task", first.task, artifact.task),
            ("preprocessing", first.preprocess, artifact.preprocess),
        ):
            if ours != theirs:
                raise UserError(
                    f"{name} cannot be averaged with {names[0]}: its {what} differs: "
                    f"{_differences(ours, theirs)}"
                )
    if not any(unmergeable(a.model.model, a.model.deltas) for a in artifacts):
        return [_merged(artifact) for artifact in artifacts]
    for artifact, name in zip(artifacts[1:], names[1:], strict=True):
        if artifact.model.deltas != first.model.deltas:
            raise UserError(
                f"{name} has other deltas than {names[0]}, and not all can be merged into the base"
            )
    return list(artifacts)


def _dequantized(artifact: Artifact) -> Artifact:
    params = dequantize(artifact.variables["params"])
    variables = {**artifact.variables, "params": params}
    return dataclasses.replace(artifact, variables=variables)


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

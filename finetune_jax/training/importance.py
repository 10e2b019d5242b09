"""Which leaves are worth training: statistics of the gradients of a few target batches, per leaf.

The statistics are the relative gradient norm and the signal-to-noise ratio of Lee et al. 2022,
arXiv 2210.11466, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.data.augment import make_input_pipeline
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import Frozen, State
from finetune_jax.training.step import Batch, Leaves, make_loss

GradientStep = Callable[[State, Frozen, Batch], tuple[Leaves, Leaves]]
"""Function of (state, frozen, batch) to (gradient of the trainable half, |g| / |w| f32[] of each
leaf)."""


def make_gradient(phase: PhaseRun) -> GradientStep:
    """Returns the jitted gradient of the trainable half, without augmentation.

    In the ratio |g| / |w|, a leaf of zeros counts as if |w| were 1.

    Args:
      phase: phase with the loss and the mode of each stage.
    """
    setup = phase.setup
    loss = make_loss(
        phase.model,
        setup.task,
        phase.plan,
        make_input_pipeline(setup.preprocess),
        setup.teacher,
    )

    def gradient(state: State, frozen: Frozen, batch: Batch) -> tuple[Leaves, Leaves]:
        grads, _ = jax.grad(loss, has_aux=True)(
            state.params, state.stats, state.hyper, frozen, batch, state.key
        )

        def relative(g: jax.Array, w: jax.Array) -> jax.Array:
            length = jnp.linalg.norm(w.ravel())
            return jnp.linalg.norm(g.ravel()) / jnp.where(length > 0, length, 1.0)

        return grads, jax.tree.map(relative, grads, state.params)

    return jax.jit(gradient)


def measure(
    phase: PhaseRun,
    state: State,
    frozen: Frozen,
    batches: Iterable[Batch],
    gradient: GradientStep | None = None,
) -> dict[str, dict[str, float]]:
    """Measures statistics of the gradient of each trainable leaf over some batches.

    Args:
      phase: phase with the loss and the mode of each stage.
      state: trainable half, which is not changed.
      frozen: frozen half.
      batches: at least one batch, on devices.
      gradient: `make_gradient` of the same phase, where a cache holds the function.

    Returns:
      ``{"rgn": {path: mean of |g| / |w|}, "snr": {path: |mean g|² / sum of var g},
      "gradient": {path: root of the mean of |g|²}, "weight": {path: |w|}}``, not normalised.
    """
    gradient = gradient or make_gradient(phase)
    sums: Any = None
    count = 0
    for batch in batches:
        grads, relative = gradient(state, frozen, batch)
        terms = (grads, jax.tree.map(jnp.square, grads), relative)
        sums = terms if sums is None else jax.tree.map(jnp.add, sums, terms)
        count += 1
    total, square, ratios = sums

    def ratio(s: jax.Array, q: jax.Array) -> jax.Array:
        mean = s / count
        variance = jnp.maximum(q / count - mean**2, 0.0)
        # Both sums before the quotient, because over few batches the variance of some scalar is
        # always close to 0.
        return jnp.sum(mean**2) / jnp.maximum(jnp.sum(variance), 1e-30)

    snr = tree.flatten(jax.tree.map(ratio, total, square))
    squares = tree.flatten(jax.tree.map(jnp.sum, square))
    weights = tree.flatten(jax.tree.map(lambda w: jnp.linalg.norm(w.ravel()), state.params))
    return {
        "rgn": {p: float(x) / count for p, x in tree.flatten(ratios).items()},
        "snr": {p: float(x) for p, x in snr.items()},
        "gradient": {p: float(jnp.sqrt(x / count)) for p, x in squares.items()},
        "weight": {p: float(x) for p, x in weights.items()},
    }


def by_stage(
    values: dict[str, dict[str, float]], sizes: dict[str, int], stages: Sequence[str]
) -> list[dict[str, Any]]:
    """Adds up the statistics of `measure` per stage.

    Args:
      values: result of `measure`.
      sizes: number of scalars per leaf path.
      stages: stages in forward order; a stage without a measured leaf is left out.

    Returns:
      Rows of ``stage``, ``params``, ``rgn`` (|gradient| / |weight| of all leaves of the stage
      together) and ``snr`` (mean over the scalars of the stage).
    """
    rows = []
    for stage in stages:
        paths = [p for p in values["rgn"] if p.split("/", 1)[0] == stage]
        if not paths:
            continue
        gradient, weight = (
            float(np.sqrt(sum(values[name][p] ** 2 for p in paths)))
            for name in ("gradient", "weight")
        )
        size = sum(sizes[p] for p in paths)
        snr = sum(values["snr"][p] * sizes[p] for p in paths) / size
        rgn = gradient / max(weight, 1e-12)
        rows.append({"stage": stage, "params": size, "rgn": rgn, "snr": snr})
    return rows


def propose(rows: Sequence[dict[str, Any]], head: str = "head") -> list[tuple[str, str]]:
    """Proposes schemes for a model and its target data, with the reason of each.

    Lee et al. find that the block with the highest relative gradient norm is the block to train.
    The proposals are this stage, the smallest set of stages that holds half of the sum of the
    norms, and learning rates in proportion to the norms; ``linear_probe`` and ``full`` are the
    cheapest and the most expensive scheme to compare with.

    Args:
      rows: result of `by_stage`.
      head: stage that trains in every proposal.
    """
    body = [row for row in rows if row["stage"] != head]
    falling = sorted(body, key=lambda row: -row["rgn"])
    total = sum(row["rgn"] for row in body)
    few, held = [], 0.0
    for row in falling:
        few.append(row["stage"])
        held += row["rgn"]
        if held >= total / 2:
            break
    order = {row["stage"]: number for number, row in enumerate(body)}
    few.sort(key=order.__getitem__)

    def text(names: Sequence[str]) -> str:
        return f"stages({', '.join(map(repr, names))}) + {head}"

    found = [
        ("linear_probe", "the cheapest scheme"),
        (text([falling[0]["stage"]]), "the stage with the highest relative gradient norm"),
        (text(few), f"{held / total:.0%} of the relative gradient norm"),
        ("auto_rgn", "every leaf, at rates in proportion to its relative gradient norm"),
        ("full", "the most expensive scheme"),
    ]
    return [pair for n, pair in enumerate(found) if pair[0] not in [p[0] for p in found[:n]]]


def leaf_rates(values: dict[str, float], threshold: float | None = None) -> dict[str, np.float32]:
    """Returns a factor in [0, 1] on the learning rate of each leaf: its value over the largest.

    Args:
      values: statistic of each leaf by path, >= 0.
      threshold: factor below which a leaf gets 0; None for no threshold.
    """
    top = max(values.values()) or 1.0
    rates = {path: np.float32(value / top) for path, value in values.items()}
    if threshold is None:
        return rates
    return {p: r if r >= threshold else np.float32(0) for p, r in rates.items()}

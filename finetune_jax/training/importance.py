"""What is worth training: gradients of a few target batches, per leaf.

Lee et al. 2022, arXiv 2210.11466, section 5: relative gradient norm and signal-to-noise ratio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.data.augment import make_input_pipeline
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import Frozen, State
from finetune_jax.training.step import make_loss


def make_gradient(run: PhaseRun) -> Any:
    """Returns (state, base, batch) to (gradient, |g| / |w| per leaf) of the trainable half, jitted.

    In the ratio, a leaf of zeros counts with |w| = 1.
    """
    setup = run.setup
    loss = make_loss(
        run.model,
        setup.task,
        run.plan,
        make_input_pipeline(setup.preprocess),
        setup.teacher,
    )

    def gradient(state: State, base: Frozen, batch: Any) -> Any:
        grads, _ = jax.grad(loss, has_aux=True)(
            state.params, state.stats, state.hyper, base, batch, state.key
        )

        def relative(g: jax.Array, w: jax.Array) -> jax.Array:
            length = jnp.linalg.norm(w.ravel())
            return jnp.linalg.norm(g.ravel()) / jnp.where(length > 0, length, 1.0)

        return grads, jax.tree.map(relative, grads, state.params)

    return jax.jit(gradient)


def measure(
    run: PhaseRun,
    state: State,
    base: Frozen,
    batches: Iterable[dict[str, Any]],
    gradient: Any = None,
) -> dict[str, dict[str, float]]:
    """Statistics of the gradient of each trainable leaf over some batches, by path.

    Args:
      run: phase whose loss and modes are meant.
      state: read, not changed.
      base: likewise.
      batches: on devices.
      gradient: `make_gradient` of the same run, where it is kept for the next time.

    Returns:
      ``{"rgn": {path: mean of |g| / |w|}, "snr": {path: |mean g|² / sum of var g},
      "gradient": {path: root of the mean of |g|²}, "weight": {path: |w|}}``, not normalised.
    """
    gradient = gradient or make_gradient(run)
    total = square = ratios = None
    count = 0
    for batch in batches:
        grads, relative = gradient(state, base, batch)
        squares = jax.tree.map(jnp.square, grads)
        if total is None:
            total, square, ratios = grads, squares, relative
        else:
            total, square, ratios = jax.tree.map(
                jnp.add, (total, square, ratios), (grads, squares, relative)
            )
        count += 1

    def ratio(s: jax.Array, q: jax.Array) -> jax.Array:
        mean = s / count
        variance = jnp.maximum(q / count - mean**2, 0.0)
        # Sums first: over few batches, some scalar's variance is always next to nothing.
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
    """What `measure` found, per stage.

    Args:
      values: of `measure`.
      sizes: scalars per leaf path.
      stages: in forward order; those without a measured leaf are left out.

    Returns:
      Rows of ``stage``, ``params``, ``rgn`` (|gradient| over |weight| of the whole stage) and
      ``snr`` (mean over its scalars).
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
    """Schemes worth a try for a profile, with the reason of each.

    Lee et al. find that the block with the highest relative gradient norm is the one to train. The
    proposals are that stage, the fewest stages that hold half of the sum, and the rates of the
    profile itself; ``linear_probe`` and ``full`` are the ends to compare with.

    Args:
      rows: of `by_stage`.
      head: stage that trains in any case.
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
        ("linear_probe", "the cheap end"),
        (text([falling[0]["stage"]]), "the stage with the highest relative gradient norm"),
        (text(few), f"{held / total:.0%} of the relative gradient norm"),
        ("auto_rgn", "every leaf, at rates in proportion to its relative gradient norm"),
        ("full", "the dear end"),
    ]
    return [pair for n, pair in enumerate(found) if pair[0] not in [p[0] for p in found[:n]]]


def leaf_rates(values: dict[str, float], threshold: float | None = None) -> dict[str, np.float32]:
    """Factors on the learning rate: values over the largest; below `threshold`, 0."""
    top = max(values.values()) or 1.0
    rates = {path: np.float32(value / top) for path, value in values.items()}
    if threshold is None:
        return rates
    return {p: r if r >= threshold else np.float32(0) for p, r in rates.items()}

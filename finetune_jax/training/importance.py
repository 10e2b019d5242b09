"""What is worth training: gradients of a few target batches, per leaf.

Lee et al. 2022, arXiv 2210.11466, section 5: relative gradient norm and signal-to-noise ratio.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import Base, State
from finetune_jax.training.step import make_loss


def measure(
    run: PhaseRun, state: State, base: Base, batches: Iterable[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Statistics of the gradient of each trainable leaf over some batches, by path.

    Args:
      run: phase whose loss and modes are meant.
      state: read, not changed.
      base: likewise.
      batches: on devices.

    Returns:
      ``{"rgn": {path: mean of |g| / |w|}, "snr": {path: mean over scalars of (mean g)² / var g}}``,
      not normalised. A leaf of zeros counts with |w| = 1.
    """
    experiment = run.experiment
    loss = make_loss(
        run.model, experiment.task, run.plan, experiment.preprocess.device, lambda key, x: x
    )

    @jax.jit
    def gradient(state: State, base: Base, batch: Any) -> Any:
        grads, _ = jax.grad(loss, has_aux=True)(
            state.params, state.stats, state.hyper, base, batch, state.key
        )

        def relative(g: jax.Array, w: jax.Array) -> jax.Array:
            length = jnp.linalg.norm(w.ravel())
            return jnp.linalg.norm(g.ravel()) / jnp.where(length > 0, length, 1.0)

        return grads, jax.tree.map(relative, grads, state.params)

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
        return jnp.mean(mean**2 / (variance + 1e-12 * jnp.max(q) + 1e-30))

    snr = tree.flatten(jax.tree.map(ratio, total, square))
    return {
        "rgn": {p: float(x) / count for p, x in tree.flatten(ratios).items()},
        "snr": {p: float(x) for p, x in snr.items()},
    }


def leaf_rates(values: dict[str, float], threshold: float | None = None) -> dict[str, np.float32]:
    """Factors on the learning rate: values over the largest; below `threshold`, 0."""
    top = max(values.values()) or 1.0
    rates = {path: np.float32(value / top) for path, value in values.items()}
    if threshold is None:
        return rates
    return {p: r if r >= threshold else np.float32(0) for p, r in rates.items()}

"""BatchNorm statistics recomputed over training images, without labels or gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.deltas import Adapted
from finetune_jax.models import Mode, StagedModel

# Of all models here: a running statistic keeps this share of its old value per batch.
_MOMENTUM = 0.9


def reestimate(
    model: StagedModel | Adapted,
    variables: dict[str, Any],
    images: Sequence[jax.Array],
    prepare: Callable[[jax.Array], jax.Array],
    stages: Collection[str] | None = None,
) -> dict[str, Any]:
    """Statistics replaced by their mean over some batches (Schneider et al. 2020, 2006.16971).

    Args:
      model: whose stages they are.
      variables: read, not changed.
      images: batches uint8[b, h, w, 3].
      prepare: to normalised f32, on device.
      stages: whose statistics; None means all. The others use theirs and keep them.

    Returns:
      The whole new ``batch_stats``.
    """
    old = variables["batch_stats"]
    chosen = [s for s in old if stages is None or s in stages]
    mode = Mode(frozenset(chosen))
    # A running update from 0 is (1 - momentum) times the batch's statistic: undo the factor.
    start = {s: jax.tree.map(jnp.zeros_like, x) if s in chosen else x for s, x in old.items()}

    # Weights are arguments: as constants they would be compiled into the program.
    @jax.jit
    def forward(params: Any, stats: Any, batch: jax.Array) -> Any:
        _, updates = model.apply(
            {"params": params, "batch_stats": stats}, prepare(batch), mode, mutable=["batch_stats"]
        )
        return {s: updates["batch_stats"][s] for s in chosen}

    total: Any = {s: start[s] for s in chosen}
    for batch in images:
        total = jax.tree.map(jnp.add, total, forward(variables["params"], start, batch))
    factor = 1 / ((1.0 - _MOMENTUM) * len(images))
    return {**old, **jax.tree.map(lambda x: x * factor, total)}

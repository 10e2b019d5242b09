"""BatchNorm statistics recomputed over training images, without labels or gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.deltas import Adapted
from finetune_jax.models import Mode, StagedModel
from finetune_jax.pretrained.values import require_good_values

Update = Callable[[Any, Any, Any], Any]
"""Function of (params, statistics, batch) to the updated statistics of the chosen stages."""


def make_update(
    model: StagedModel | Adapted,
    prepare: Callable[[dict[str, Any]], Any],
    stages: Collection[str],
) -> Update:
    """Returns the function that updates statistics by a batch, jitted.

    Args:
      model: staged model.
      prepare: makes the model's input from a batch, on device.
      stages: stages whose statistics are updated.
    """
    mode = Mode(frozenset(stages))

    # The weights are arguments, because constants would be compiled into the program.
    @jax.jit
    def update(params: Any, stats: Any, batch: Any) -> Any:
        _, updates = model.apply(
            {"params": params, "batch_stats": stats}, prepare(batch), mode, mutable=["batch_stats"]
        )
        return {s: updates["batch_stats"][s] for s in stages}

    return update


def reestimate(
    model: StagedModel | Adapted,
    variables: dict[str, Any],
    batches: Sequence[dict[str, Any]],
    prepare: Callable[[dict[str, Any]], Any],
    stages: Collection[str] | None = None,
    update: Update | None = None,
) -> dict[str, Any]:
    """Replaces statistics by their mean over batches (Schneider et al. 2020, arXiv 2006.16971).

    Args:
      model: staged model.
      variables: variables of the model; they are not changed.
      batches: batches of inputs, at least one.
      prepare: makes the model's input from a batch, on device.
      stages: stages whose statistics are replaced; None for all stages. The other stages normalise
        with their old statistics and keep them.
      update: result of `make_update` for these stages, where several variables share it.

    Returns:
      The new ``batch_stats`` of all stages.

    Raises:
      UserError: a new statistic is not finite.
    """
    old = variables["batch_stats"]
    chosen = [s for s in old if stages is None or s in stages]
    forward = update or make_update(model, prepare, chosen)
    # A running update from 0 gives (1 - momentum) times the batch's statistic. An update from 1
    # gives the same plus momentum, so the difference of the two is the momentum of each layer.
    zeros = {s: jax.tree.map(jnp.zeros_like, x) if s in chosen else x for s, x in old.items()}
    ones = {s: jax.tree.map(jnp.ones_like, x) if s in chosen else x for s, x in old.items()}

    total: Any = {s: zeros[s] for s in chosen}
    for batch in batches:
        total = jax.tree.map(jnp.add, total, forward(variables["params"], zeros, batch))
    first = forward(variables["params"], zeros, batches[0])
    raised = forward(variables["params"], ones, batches[0])
    share = jax.tree.map(lambda a, b: 1 - jnp.mean(b - a), first, raised)
    new = jax.tree.map(lambda x, s: x / (s * len(batches)), total, share)
    require_good_values({"batch_stats": new}, "BatchNorm statistics of the images")
    return {**old, **new}

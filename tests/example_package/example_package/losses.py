"""A loss: ``--config.task.loss='example_package.losses:hinge(margin=2.0)'``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def hinge(
    outputs: jax.Array, targets: jax.Array, given: dict[str, Any], *, margin: float = 1.0
) -> jax.Array:
    """The multi-class hinge loss of Crammer and Singer 2001.

    Args:
      outputs: logits, f32[b, classes].
      targets: shares of the classes, f32[b, classes]; 1 for the label without smoothing.
      given: further arrays of the batch, which this loss does not read.
      margin: distance that the logit of the label should have from all others.

    Returns:
      Loss of each example, f32[b].
    """
    del given
    label = jax.nn.one_hot(jnp.argmax(targets, -1), outputs.shape[-1])
    right = jnp.sum(outputs * label, -1)
    wrong = jnp.max(outputs - 1e9 * label, -1)
    return jnp.maximum(0.0, margin + wrong - right)

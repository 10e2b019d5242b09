"""Scores of a split: every example once, with an interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from finetune_jax.data.batches import eval_batches
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Examples


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927), 95 % by default.

    Args:
      successes: from 0 to n.
      n: at least 1.
      z: normal quantile of the level.
    """
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    eval_step: Any,
    variables: Any,
    examples: Examples,
    preprocess: Preprocess,
    *,
    batch_size: int,
    place: Any,
) -> dict[str, Any]:
    """Scores a split.

    Args:
      eval_step: compiled (variables, batch) to ``logits``, ``loss`` and ``accuracy`` per example.
      variables: whole variables.
      examples: the split.
      preprocess: host part.
      batch_size: of the compiled step.
      place: puts a host batch on devices.

    Returns:
      ``accuracy``, ``accuracy_low``, ``accuracy_high`` (95 % Wilson), ``loss``, ``n_scored``.

    Raises:
      RuntimeError: if not every example was scored exactly once.
    """
    losses, correct = [], []
    for batch in eval_batches(examples, preprocess, batch_size):
        real = batch.pop("mask") > 0
        result = eval_step(variables, place(batch))
        losses.append(np.asarray(result["loss"])[real])
        correct.append(np.asarray(result["accuracy"])[real])
    scored = np.concatenate(correct)
    if len(scored) != len(examples):
        raise RuntimeError(f"scored {len(scored)} of {len(examples)} examples")
    low, high = wilson(int(scored.sum()), len(scored))
    return {
        "accuracy": float(scored.mean(dtype=np.float64)),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": float(np.concatenate(losses).mean(dtype=np.float64)),
        "n_scored": len(scored),
    }

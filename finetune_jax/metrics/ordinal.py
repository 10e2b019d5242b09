"""Scores of ordered classes."""

from __future__ import annotations

import math

import numpy as np


def weighted_kappa(table: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights (1968), in [-1, 1].

    nan without examples, and where all labels and all predictions are of the same class.

    Args:
      table: result of `finetune_jax.metrics.classification.confusion`.
    """
    total = table.sum()
    if not total:
        return math.nan
    classes = np.arange(len(table))
    weights = (classes[:, None] - classes[None]) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / total
    chance = (weights * expected).sum()
    return float(1 - (weights * table).sum() / chance) if chance > 0 else math.nan

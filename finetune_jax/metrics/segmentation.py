"""Scores of per-pixel classes."""

from __future__ import annotations

import math

import numpy as np


def mean_iou(table: np.ndarray) -> float:
    """Mean intersection over union of the classes that occur or are predicted, in [0, 1].

    nan without pixels.

    Args:
      table: result of `finetune_jax.metrics.classification.confusion` of all pixels.
    """
    union = table.sum(0) + table.sum(1) - np.diag(table)
    seen = union > 0
    return float(np.mean(np.diag(table)[seen] / union[seen])) if seen.any() else math.nan

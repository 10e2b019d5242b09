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
    each = iou(table)
    seen = ~np.isnan(each)
    return float(np.mean(each[seen])) if seen.any() else math.nan


def iou(table: np.ndarray) -> np.ndarray:
    """Intersection over union f64[classes]; nan for a class that neither occurs nor is predicted.

    Args:
      table: as for `mean_iou`.
    """
    union = table.sum(0) + table.sum(1) - np.diag(table)
    with np.errstate(invalid="ignore"):
        return np.diag(table) / union

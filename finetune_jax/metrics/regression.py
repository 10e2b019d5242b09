"""Scores of real-valued predictions; an undefined score is nan."""

from __future__ import annotations

import math

import numpy as np


def rmse(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Root of the mean squared error; nan without examples."""
    if not len(targets):
        return math.nan
    return float(np.sqrt(np.mean((predicted.astype(np.float64) - targets) ** 2)))


def mae(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean absolute error; nan without examples."""
    return (
        float(np.mean(np.abs(predicted.astype(np.float64) - targets))) if len(targets) else math.nan
    )


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two f[n]; nan where either is constant or n < 2."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    # Tested before the mean is subtracted: the mean of equal values may differ from the value.
    if len(a) < 2 or not np.ptp(a) > 0 or not np.ptp(b) > 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    # Scaled before squaring, because the squares of tiny numbers are 0.
    largest = np.abs(a).max(), np.abs(b).max()
    if not min(largest) > 0:
        return math.nan
    a, b = a / largest[0], b / largest[1]
    return float(np.clip((a @ b) / math.sqrt((a @ a) * (b @ b)), -1, 1))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two f[n]; nan where either is constant or n < 2.

    Equal values share their mean rank.
    """
    from scipy.stats import rankdata

    return pearson(rankdata(a), rankdata(b)) if len(a) else math.nan


def r2(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Coefficient of determination, at most 1; nan for constant targets or fewer than two."""
    targets = targets.astype(np.float64)
    if not len(targets) or not np.ptp(targets) > 0:
        return math.nan
    spread = ((targets - targets.mean()) ** 2).sum()
    if not spread > 0:
        return math.nan
    return float(1 - ((predicted - targets) ** 2).sum() / spread)

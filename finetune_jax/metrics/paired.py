"""Tests of whether two models differ on the same examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test (1947).

    The null hypothesis is that both models are right equally often. The p-value is 1 where no
    example tells the models apart.

    Args:
      ours: bool[n], whether the first model was right on each example.
      theirs: bool[n], whether the second model was right on each of the same examples.
    """
    from scipy.stats import binomtest

    first = int((ours & ~theirs).sum())
    second = int((~ours & theirs).sum())
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def bootstrap_difference(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Paired bootstrap of a difference of scores: interval and p-value.

    Args:
      statistic: function of example numbers i64[n], drawn with replacement, to the difference of
        the scores of two models on those examples.
      n: number of examples.
      resamples: number of resamples.
      level: confidence level, in (0, 1).
      seed: seed of the draws.

    Returns:
      (low, high, p): the percentile interval, and the two-sided p-value of no difference, which is
      twice the share of resamples on the other side of 0 and at least 1 / resamples. Resamples on
      which the difference is not finite are left out; all three are nan without any other.
    """
    if not n:
        return math.nan, math.nan, math.nan
    generator = np.random.Generator(np.random.Philox(seed))
    values = np.array([statistic(generator.integers(0, n, n)) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    share = min((values <= 0).mean(), (values >= 0).mean())
    return float(low), float(high), float(min(1.0, max(2 * share, 1 / resamples)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order of `p_values`."""
    order = np.argsort(p_values)
    adjusted, highest = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted.tolist()

"""Confidence intervals of scores: Wilson for proportions, bootstrap for other scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927): (low, high); (nan, nan) if n is 0.

    Args:
      successes: number of successes, from 0 to n.
      n: number of trials.
      z: quantile of the normal distribution for the confidence level; the default is for 95 %.
    """
    if not n:
        return math.nan, math.nan
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over resampled examples (Efron 1979).

    Args:
      statistic: function of example numbers i64[n], drawn with replacement, to the statistic.
      n: number of examples.
      resamples: number of resamples.
      level: confidence level, in (0, 1).
      seed: seed of the draws; the same examples always give the same interval.

    Returns:
      (low, high) over the resamples on which the statistic is finite; (nan, nan) without any.
    """
    if not n:
        return math.nan, math.nan
    generator = np.random.Generator(np.random.Philox(seed))
    values = np.array([statistic(generator.integers(0, n, n)) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_pairs(
    score: Callable[[np.ndarray, np.ndarray], float], predicted: np.ndarray, targets: np.ndarray
) -> tuple[float, float]:
    """`bootstrap` of a score of predictions [n, …] and targets [n, …]: (low, high)."""
    return bootstrap(lambda rows: score(predicted[rows], targets[rows]), len(targets))

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
    return _wilson(successes / n, n, z)


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """`wilson` of a share of n examples; n need not be whole."""
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


def bounded(
    value: float, error: float, quantile: float, n: int, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Interval of a score that has bounds, which never leaves them: (low, high).

    Between two bounds it is Wilson's interval with the effective number of examples: the number
    with which a share would have this standard error (Dean and Pagano 2015,
    doi:10.1093/jssam/smv024). For the share of one run this is `wilson` itself. With a lower bound
    alone the interval is symmetric in the logarithm of the distance to the bound; without bounds it
    is symmetric.

    Args:
      value: the score, in `bounds`.
      error: standard error of the score; at 0 a score between two bounds has the interval of a
        share of `n` examples, and no width if `n` is 0. The interval is (nan, nan) if the error is
        nan.
      quantile: half width of the interval in standard errors.
      n: number of examples.
      bounds: smallest and largest possible score; infinite where there is none.
    """
    lowest, highest = bounds
    if math.isnan(value) or math.isnan(error):
        return math.nan, math.nan
    if math.isinf(lowest):
        return value - quantile * error, value + quantile * error
    if math.isinf(highest):
        if not value > lowest:
            return value, value + quantile * error
        # The exponent is limited so that a hopeless error stays a finite number.
        factor = math.exp(min(quantile * error / (value - lowest), 500.0))
        return lowest + (value - lowest) / factor, lowest + (value - lowest) * factor
    width = highest - lowest
    share = min(1.0, max(0.0, (value - lowest) / width))
    effective = share * (1 - share) / (error / width) ** 2 if error else 0.0
    if not (effective or n):
        return value, value
    low, high = _wilson(share, effective or n, quantile)
    return lowest + width * low, lowest + width * high

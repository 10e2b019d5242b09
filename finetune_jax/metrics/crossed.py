"""Means over seeds that are crossed with the same examples: their error, interval and test.

Every seed of a run is scored on the same examples, so that scores vary for two reasons: training
again with another seed, and testing on other examples. A test over seeds alone ignores the second,
and a test on the predictions of all seeds pooled ignores the first and counts every example several
times. This module follows the random-effects analysis of Obuchowski and Rockette (1995,
doi:10.1080/03610919508813243) for readers who are crossed with cases; seeds take the place of
readers, and examples the place of cases.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

MIN_SEEDS = 3
"""Smallest number of seeds for which an interval covers seeds; fewer show too little of them."""

_EXPONENT, _EXPONENT_OF_TWO_SEEDS = 1.0, 0.4


@dataclasses.dataclass(frozen=True)
class Spread:
    """How sure a mean over seeds is.

    Attributes:
      error: standard error of the mean; nan if it is not known.
      freedom: degrees of freedom of the standard error.
      seeds: whether the error covers training again with other seeds.
      examples: whether the error covers testing on other examples.
    """

    error: float
    freedom: float
    seeds: bool
    examples: bool


UNKNOWN = Spread(math.nan, math.nan, seeds=False, examples=False)


def covariance_of_means(values: np.ndarray) -> np.ndarray:
    """Covariance f64[seeds, seeds] of the means over examples, from values f[seeds, n]."""
    values = np.asarray(values, np.float64)
    return np.cov(values).reshape(len(values), -1) / values.shape[1]


def over_both(scores: Sequence[float], covariance: np.ndarray, n: int) -> Spread:
    """The error of a mean score over seeds and examples.

    With S seeds, the variance of the mean is MS / S + C: MS is the variance of the scores between
    seeds, and C, at least 0, is the mean covariance of the scores of two seeds over examples
    (Obuchowski and Rockette 1995). MS is known from S - 1 degrees of freedom only, C from many. The
    sum has (S - 1) / w**k degrees of freedom, where w is the share of MS / S in the variance.

    The exponent k = 2 is Satterthwaite's (Hillis 2007, doi:10.1002/sim.2532), who takes w as known.
    But where MS is too small by chance, the error and w are too small together, so that the formula
    gives many degrees of freedom exactly where the error deserves few: it rejects true hypotheses
    in up to 9 % of cases with three seeds and 13 % with two. Cochran and Cox (Experimental Designs,
    1957, section 4.14) avoid this by a mean of Student's quantiles of both parts with the weights w
    and 1 - w, which is known to err on the side of caution (Cochran 1964, doi:10.2307/2528317).
    Student's quantile is nearly linear in the reciprocal of its degrees of freedom, and with k = 1
    this reciprocal is the same weighted mean, w / (S - 1) + (1 - w) / many: the exponent 1 is their
    rule to the first order, with less caution. With two seeds the quantile is far from linear, and
    k = 0.4 comes near their mean itself (7.3 for w = 1/2). `experiments.error_rates` has the
    rates.

    Args:
      scores: scores f[S] of S >= 2 seeds, or differences of scores.
      covariance: covariance f64[S, S] of these scores over examples.
      n: number of examples.
    """
    count = len(scores)
    if not np.isfinite(covariance).all():
        return over_seeds(scores)
    between = _variance(scores)
    shared = max(0.0, (covariance.sum() - np.trace(covariance)) / (count * (count - 1)))
    variance = between / count + shared
    if not variance:
        return over_examples(covariance, n)
    exponent = _EXPONENT if count >= MIN_SEEDS else _EXPONENT_OF_TWO_SEEDS
    share = between / count / variance
    freedom = min(n - 1.0, (count - 1) / share**exponent) if share else n - 1.0
    return Spread(math.sqrt(variance), freedom, seeds=True, examples=True)


def over_seeds(scores: Sequence[float]) -> Spread:
    """The error of a mean over seeds alone, by Student's t; `UNKNOWN` below `MIN_SEEDS` seeds."""
    count = len(scores)
    if count < MIN_SEEDS:
        return UNKNOWN
    return Spread(math.sqrt(_variance(scores) / count), count - 1.0, seeds=True, examples=False)


def over_examples(covariance: np.ndarray, n: int) -> Spread:
    """The error of a mean of the scores of these very runs over examples alone.

    Args:
      covariance: covariance f64[S, S] of the scores of S seeds over examples.
      n: number of examples.
    """
    if not np.isfinite(covariance).all():
        return UNKNOWN
    error = math.sqrt(max(0.0, float(covariance.sum()))) / len(covariance)
    return Spread(error, max(1.0, n - 1.0), seeds=False, examples=True)


def p_value(mean: float, spread: Spread) -> float:
    """Two-sided p-value that a mean is 0, by Student's t.

    It is nan if the error is not known, and if it is 0 beside a mean that is not 0.
    """
    from scipy.stats import t

    if math.isnan(spread.error):
        return math.nan
    if not spread.error:
        return math.nan if mean else 1.0
    return float(2 * t.sf(abs(mean) / spread.error, spread.freedom))


def quantile(spread: Spread, level: float = 0.95) -> float:
    """Student's quantile for the half width of an interval, in standard errors."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, spread.freedom))


def _variance(scores: Sequence[float]) -> float:
    """Variance between seeds; a spread from rounding alone counts as 0."""
    values = np.asarray(scores, np.float64)
    variance = float(values.var(ddof=1))
    # Equal differences of scores near 1 differ by about 1e-16 after rounding.
    return 0.0 if math.sqrt(variance) <= 1e-9 * float(np.abs(values).max()) else variance

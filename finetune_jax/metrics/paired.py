"""Whether two models differ on the same examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test (1947) that both are right equally often.

    1 where they never differ.

    Args:
      ours: bool[n], whether each example was right.
      theirs: likewise, of the same examples.
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
    """(low, high, p) of a difference of scores over resampled examples, paired.

    Args:
      statistic: difference of the two scores on example numbers i64[n].
      n: examples.
      resamples: how often.
      level: of the interval.
      seed: of the draws.

    Returns:
      The percentile interval, and the two-sided p-value of no difference: twice the share of
      resamples on the other side of 0, at least 1 / resamples. Resamples on which the difference is
      undefined are left out; all nan if there is no other.
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
    """Holm's adjusted p-values (1979), in the order given."""
    order = np.argsort(p_values)
    adjusted, highest = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted.tolist()

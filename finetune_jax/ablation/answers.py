"""What rows answered to each test example, and whether two of them differ in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune_jax.ablation.outcome import Row
from finetune_jax.errors import UserError
from finetune_jax.evaluation.predictions import Predictions, load_predictions
from finetune_jax.metrics.paired import bootstrap_difference, mcnemar

MCNEMAR, BOOTSTRAP = "McNemar's test", "paired bootstrap"


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of one run.

    Attributes:
      examples: SHA-256 of the test examples in their order.
      values: bool[n], whether each was answered right; or f64[resamples], the metric on resampled
        examples, the same in every run.
    """

    examples: str
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Answered:
    """Of all runs of a table.

    McNemar's test is for metrics that are the share of right answers, such as accuracy. Where the
    metric is another, such as kappa or an error in degrees, examples are resampled: each draw takes
    the same examples in all runs, and averages the difference over the seeds, so an example and its
    repeats stay together. A metric that has no interval over examples, such as a contrastive loss,
    in which each example is compared with the others, has no such test.

    Attributes:
      test: `MCNEMAR` or `BOOTSTRAP`; empty if there is none.
      runs: by name of row, by seed.
    """

    test: str
    runs: Mapping[str, Mapping[int, Answers]]

    def p_value(self, ours: Row, theirs: Row) -> float:
        """Two-sided p-value of no difference over the common seeds; nan if there are none.

        McNemar's test is on the predictions of all common seeds together. Several seeds answer the
        same examples and are not independent, so its p-value is too small where they agree: the
        test over seeds stands beside it.

        Raises:
          UserError: predictions of other test examples.
        """
        first, second = self.runs[ours.line.name], self.runs[theirs.line.name]
        seeds = sorted(first.keys() & second.keys())
        if not seeds:
            return math.nan
        for seed in seeds:
            if first[seed].examples != second[seed].examples:
                raise UserError(
                    f"rows {ours.line.name!r} and {theirs.line.name!r}, seed {seed}: expected "
                    f"predictions of the same test examples, found others"
                )
        one, two = ([run[seed].values for seed in seeds] for run in (first, second))
        if self.test == MCNEMAR:
            return mcnemar(np.concatenate(one), np.concatenate(two))
        drawn = iter(np.mean(one, 0) - np.mean(two, 0))
        return bootstrap_difference(lambda _: next(drawn), 1, resamples=len(one[0]))[2]


def read_answers(rows: Sequence[Row], metric: str) -> Answered:
    """Reads the predictions of a table, one file at a time.

    Raises:
      UserError: a file that is not there or not one of ours.
    """
    runs = [(row, seed, path) for row in rows for seed, path in sorted(row.predictions.items())]
    found: dict[str, dict[int, Answers]] = {row.line.name: {} for row in rows}
    if not any(f"{metric}_low" in scores for row in rows for scores in row.test.values()):
        return Answered("", found)
    for row, seed, path in runs:
        predictions = load_predictions(path)
        right = predictions.task.correct(predictions.observed)
        score = row.test.get(seed, {}).get(metric)
        if right is None or score is None or not math.isclose(right.mean(), score, abs_tol=1e-6):
            return _resampled(rows, runs, metric)
        found[row.line.name][seed] = Answers(predictions.split_sha256, right)
    return Answered(MCNEMAR, found)


def _resampled(rows: Sequence[Row], runs: Sequence[Any], metric: str) -> Answered:
    from finetune_jax.progress import each

    # As many that Holm's step over all pairs of the table could still call one significant.
    resamples = max(1000, 20 * len(rows) * (len(rows) - 1))
    found: dict[str, dict[int, Answers]] = {row.line.name: {} for row in rows}
    for row, seed, path in each(runs, "resampling"):
        predictions = load_predictions(path)
        values = _scores_of_resamples(predictions, metric, resamples)
        found[row.line.name][seed] = Answers(predictions.split_sha256, values)
    return Answered(BOOTSTRAP, found)


def _scores_of_resamples(predictions: Predictions, metric: str, resamples: int) -> np.ndarray:
    """The metric on examples drawn with replacement, f64[resamples]; the same draws for equal n."""
    task, n = predictions.task, len(predictions.example)
    generator = np.random.Generator(np.random.Philox(0))
    values = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(0, n, n)
        some = {name: x[drawn] for name, x in predictions.observed.items()}
        values[i] = task.scores(some)[metric]
    return values

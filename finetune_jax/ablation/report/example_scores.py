"""Scores of each test example: the covariance of scores over examples, and tests for one seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune_jax.ablation.outcome import TableRow
from finetune_jax.errors import UserError
from finetune_jax.evaluation.predictions import Predictions, load_predictions
from finetune_jax.metrics.crossed import covariance_of_means
from finetune_jax.metrics.paired import bootstrap_difference, mcnemar
from finetune_jax.progress import each

_Run = tuple[str, int]
"""Name of the row, and seed."""


@dataclasses.dataclass(frozen=True)
class ExampleScores:
    """Scores over test examples, for every run of a table.

    For metrics that are the share of correct predictions, such as accuracy, each example counts by
    itself. For other metrics, such as kappa or an error in degrees, examples are resampled; each
    resample has the same examples in all runs. A metric without an interval over examples has
    neither, such as a contrastive loss, which compares each example with the others.

    Attributes:
      exact: whether the metric is the share of correct predictions.
      values: by row name and seed, bool[n], whether each prediction is correct, if `exact`; else
        f64[resamples], the metric on each resample.
      examples: by row name and seed, the number of examples.
      hashes: by row name and seed, SHA-256 of the test examples in their order.
    """

    exact: bool
    values: dict[_Run, np.ndarray]
    examples: dict[_Run, int]
    hashes: dict[_Run, str]

    def known(self, row: TableRow, seeds: Sequence[int]) -> bool:
        """Whether a row has predictions of the same examples with all of these seeds."""
        hashes = {self.hashes.get((row.spec.name, seed)) for seed in seeds}
        return len(hashes) == 1 and None not in hashes

    def count(self, row: TableRow, seeds: Sequence[int]) -> int:
        """Smallest number of examples of a row with these seeds."""
        return min(self.examples[row.spec.name, seed] for seed in seeds)

    def covariance(
        self, ours: TableRow, seeds: Sequence[int], theirs: TableRow | None = None
    ) -> np.ndarray:
        """Covariance f64[seeds, seeds] over examples of scores, or of differences of scores.

        The rows are `known`. The covariance is nan where the metric is undefined on nearly all
        resamples.
        """
        values = self._values(ours, seeds)
        if theirs is not None:
            values = values - self._values(theirs, seeds)
        if self.exact:
            return covariance_of_means(values)
        defined = values[:, np.isfinite(values).all(0)]
        if defined.shape[1] < 2:
            return np.full((len(seeds), len(seeds)), math.nan)
        return np.cov(defined).reshape(len(seeds), -1)

    def seeds_matter(self, ours: TableRow, theirs: TableRow, seeds: Sequence[int]) -> bool:
        """Whether the differences between two rows are not the same with every seed."""
        gaps = self._values(ours, seeds) - self._values(theirs, seeds)
        return bool((gaps != gaps[0]).any())

    def p_value(self, ours: TableRow, theirs: TableRow, seed: int) -> float:
        """Two-sided p-value that the runs of a seed differ by chance in the examples alone.

        It is that of McNemar's exact test, or of the paired bootstrap if not `exact`.
        """
        first, second = (self.values[row.spec.name, seed] for row in (ours, theirs))
        if self.exact:
            return mcnemar(first, second)
        differences = iter(first - second)
        return bootstrap_difference(lambda _: float(next(differences)), 1, resamples=len(first))[2]

    def require_same(self, ours: TableRow, theirs: TableRow, seeds: Sequence[int]) -> None:
        """Raises UserError if two rows have predictions of different test examples."""
        names = ours.spec.name, theirs.spec.name
        for seed in seeds:
            found = [self.hashes.get((name, seed)) for name in names]
            if None not in found and found[0] != found[1]:
                raise UserError(
                    f"rows {names[0]!r} and {names[1]!r}, seed {seed}: expected predictions of the "
                    f"same test examples, found others"
                )

    def _values(self, row: TableRow, seeds: Sequence[int]) -> np.ndarray:
        """Values f64[seeds, examples or resamples]."""
        return np.stack([self.values[row.spec.name, seed] for seed in seeds]).astype(np.float64)


def read_example_scores(rows: Sequence[TableRow], metric: str) -> ExampleScores:
    """Reads the predictions of all runs of a table, one file at a time.

    Args:
      rows: the rows of one table.
      metric: metric by which the rows are compared.

    Raises:
      UserError: a file of predictions is missing or invalid.
    """
    found = ExampleScores(True, {}, {}, {})
    if not any(f"{metric}_low" in scores for row in rows for scores in row.test.values()):
        return found
    for row, seed, path in _runs(rows):
        predictions = load_predictions(path)
        correct = predictions.task.correct(predictions.observed)
        score = row.test.get(seed, {}).get(metric)
        if correct is None or score is None:
            return _resampled_scores(rows, metric)
        if not math.isclose(correct.mean(), score, abs_tol=1e-6):
            return _resampled_scores(rows, metric)
        _add(found, row, seed, correct, predictions)
    return found


def _runs(rows: Sequence[TableRow]) -> list[tuple[TableRow, int, Path]]:
    return [(row, seed, path) for row in rows for seed, path in sorted(row.predictions.items())]


def _resampled_scores(rows: Sequence[TableRow], metric: str) -> ExampleScores:
    # Enough resamples that Holm's first step over all pairs of the table can still be significant.
    resamples = max(1000, 20 * len(rows) * (len(rows) - 1))
    found = ExampleScores(False, {}, {}, {})
    for row, seed, path in each(_runs(rows), "resampling"):
        predictions = load_predictions(path)
        _add(found, row, seed, _scores_of_resamples(predictions, metric, resamples), predictions)
    return found


def _add(
    found: ExampleScores, row: TableRow, seed: int, values: np.ndarray, predictions: Predictions
) -> None:
    run = row.spec.name, seed
    found.values[run] = values
    found.examples[run] = len(predictions.example)
    found.hashes[run] = predictions.split_sha256


def _scores_of_resamples(predictions: Predictions, metric: str, resamples: int) -> np.ndarray:
    """The metric on examples drawn with replacement, f64[resamples].

    Runs with the same number of examples get the same draws.
    """
    task, n = predictions.task, len(predictions.example)
    generator = np.random.Generator(np.random.Philox(0))
    values = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(0, n, n)
        resample = {name: x[drawn] for name, x in predictions.observed.items()}
        values[i] = task.scores(resample)[metric]
    return values

"""Scores of each test example, and the test whether two rows differ on the same examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune_jax.ablation.outcome import TableRow
from finetune_jax.errors import UserError
from finetune_jax.evaluation.predictions import Predictions, load_predictions
from finetune_jax.metrics.paired import bootstrap_difference, mcnemar
from finetune_jax.progress import each

MCNEMAR, BOOTSTRAP = "McNemar's test", "paired bootstrap"

_Run = tuple[str, int]
"""Name of the row, and seed."""


@dataclasses.dataclass(frozen=True)
class ExampleScores:
    """Scores over test examples, for every run of a table.

    McNemar's test is used for metrics that are the share of correct predictions, such as accuracy.
    For other metrics, such as kappa or an error in degrees, examples are resampled: each resample
    has the same examples in all runs, and differences are averaged over seeds, so that the
    predictions for one example with different seeds stay together. A metric without an interval
    over examples has no test over examples, such as a contrastive loss, which compares each example
    with the others.

    Attributes:
      test: `MCNEMAR` or `BOOTSTRAP`; empty if there is no test.
      values: by row name and seed, bool[n], whether each prediction is correct, for `MCNEMAR`; or
        f64[resamples], the metric on each resample, for `BOOTSTRAP`.
      hashes: by row name and seed, SHA-256 of the test examples in their order.
    """

    test: str
    values: dict[_Run, np.ndarray]
    hashes: dict[_Run, str]

    def p_value(self, ours: TableRow, theirs: TableRow) -> float:
        """Two-sided p-value of no difference over the common seeds; nan without common seeds.

        McNemar's test is computed on the predictions of all common seeds together. Predictions with
        different seeds for the same example are not independent, so this p-value is too small where
        seeds agree; the test over seeds is reported beside it.

        Raises:
          UserError: the two rows have predictions of different test examples.
        """
        names = ours.spec.name, theirs.spec.name
        seeds = sorted({s for n, s in self.values if n == names[0]}
                       & {s for n, s in self.values if n == names[1]})  # fmt: skip
        if not seeds:
            return math.nan
        for seed in seeds:
            if self.hashes[names[0], seed] != self.hashes[names[1], seed]:
                raise UserError(
                    f"rows {names[0]!r} and {names[1]!r}, seed {seed}: expected predictions of the "
                    f"same test examples, found others"
                )
        first, second = ([self.values[name, seed] for seed in seeds] for name in names)
        if self.test == MCNEMAR:
            return mcnemar(np.concatenate(first), np.concatenate(second))
        differences = iter(np.mean(first, 0) - np.mean(second, 0))
        return bootstrap_difference(lambda _: float(next(differences)), 1, resamples=len(first[0]))[
            2
        ]


def read_example_scores(rows: Sequence[TableRow], metric: str) -> ExampleScores:
    """Reads the predictions of all runs of a table, one file at a time.

    Args:
      rows: the rows of one table.
      metric: metric by which the rows are compared.

    Raises:
      UserError: a file of predictions is missing or invalid.
    """
    if not any(f"{metric}_low" in scores for row in rows for scores in row.test.values()):
        return ExampleScores("", {}, {})
    values: dict[_Run, np.ndarray] = {}
    hashes: dict[_Run, str] = {}
    for row, seed, path in _runs(rows):
        predictions = load_predictions(path)
        correct = predictions.task.correct(predictions.observed)
        score = row.test.get(seed, {}).get(metric)
        if correct is None or score is None:
            return _resampled_scores(rows, metric)
        if not math.isclose(correct.mean(), score, abs_tol=1e-6):
            return _resampled_scores(rows, metric)
        values[row.spec.name, seed] = correct
        hashes[row.spec.name, seed] = predictions.split_sha256
    return ExampleScores(MCNEMAR, values, hashes)


def _runs(rows: Sequence[TableRow]) -> list[tuple[TableRow, int, Path]]:
    return [(row, seed, path) for row in rows for seed, path in sorted(row.predictions.items())]


def _resampled_scores(rows: Sequence[TableRow], metric: str) -> ExampleScores:
    # Enough resamples that Holm's first step over all pairs of the table can still be significant.
    resamples = max(1000, 20 * len(rows) * (len(rows) - 1))
    values: dict[_Run, np.ndarray] = {}
    hashes: dict[_Run, str] = {}
    for row, seed, path in each(_runs(rows), "resampling"):
        predictions = load_predictions(path)
        values[row.spec.name, seed] = _scores_of_resamples(predictions, metric, resamples)
        hashes[row.spec.name, seed] = predictions.split_sha256
    return ExampleScores(BOOTSTRAP, values, hashes)


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

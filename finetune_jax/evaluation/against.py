"""Paired tests of two models on the same examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.evaluation.predictions import Predictions
from finetune_jax.metrics.paired import bootstrap_difference, mcnemar
from finetune_jax.tasks import Task


class _ReadRecorder(dict[str, np.ndarray]):
    """A dict that records which of its keys are read."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        self.read.add(key)
        return super().__getitem__(key)


def compare(ours: Predictions, theirs: Predictions, *, resamples: int = 2000) -> dict[str, Any]:
    """Tests whether two models differ in the task's headline metric.

    Args:
      ours: predictions of the first model.
      theirs: predictions of the second model, on the same examples in the same order.
      resamples: number of bootstrap resamples.

    Returns:
      ``metric``, its values ``ours`` and ``theirs``, ``difference`` (ours - theirs) with the 95 %
      interval ``difference_low``, ``difference_high`` and the two-sided ``p_bootstrap`` of the
      paired bootstrap, and ``n``. Where each prediction is right or wrong, also the exact
      ``p_mcnemar`` of McNemar's test, ``only_ours_right`` and ``only_theirs_right``.

    Raises:
      UserError: the two have other examples, another order of the examples, or another task.
    """
    _require_same(ours, theirs)
    task, n = ours.task, len(ours.example)
    ours_read, theirs_read = _needed(ours), _needed(theirs)

    def difference(rows: np.ndarray) -> float:
        return _metric(task, ours_read, rows) - _metric(theirs.task, theirs_read, rows)

    every = np.arange(n)
    low, high, p = bootstrap_difference(difference, n, resamples=resamples)
    found = {
        "metric": task.metric,
        "better": task.better,
        "ours": _metric(task, ours_read, every),
        "theirs": _metric(theirs.task, theirs_read, every),
        "difference": difference(every),
        "difference_low": low,
        "difference_high": high,
        "p_bootstrap": p,
        "n": n,
    }
    right, other = task.correct(ours.observed), theirs.task.correct(theirs.observed)
    if right is not None and other is not None:
        found |= {
            "p_mcnemar": mcnemar(right, other),
            "only_ours_right": int((right & ~other).sum()),
            "only_theirs_right": int((~right & other).sum()),
        }
    return found


def _metric(task: Task, observed: dict[str, np.ndarray], rows: np.ndarray) -> float:
    return float(task.scores({name: x[rows] for name, x in observed.items()})[task.metric])


def _needed(predictions: Predictions) -> dict[str, np.ndarray]:
    """The arrays that the scores read. The other arrays, such as logits, are not resampled."""
    recorder = _ReadRecorder(predictions.observed)
    predictions.task.scores(recorder)
    return {name: predictions.observed[name] for name in recorder.read}


def _require_same(ours: Predictions, theirs: Predictions) -> None:
    if ours.task.name != theirs.task.name:
        raise UserError(
            f"--against: expected predictions of the task {ours.task.name!r}, found "
            f"{theirs.task.name!r}"
        )
    first, second = ours.task.class_names, theirs.task.class_names
    if first != second:
        raise UserError(f"--against: expected the classes {first}, found {second}")
    if not np.array_equal(ours.example, theirs.example):
        shared = len(np.intersect1d(ours.example, theirs.example))
        reason = (
            "the same examples in another order"
            if shared and np.array_equal(np.sort(ours.example), np.sort(theirs.example))
            else f"{len(theirs.example)} examples, {shared} of them shared"
        )
        raise UserError(
            f"--against: paired tests need the same examples in the same order: expected "
            f"{_split_name(ours)}, {len(ours.example)} examples; "
            f"found {_split_name(theirs)}, {reason}"
        )


def _split_name(predictions: Predictions) -> str:
    about = predictions.about
    return f"{about.get('source')} {about.get('split_text')!r}"

"""Paired tests of two models on the same examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.evaluation.predictions import Predictions
from finetune_jax.metrics.paired import bootstrap_difference, mcnemar
from finetune_jax.tasks import Task


class _Recorded(dict):
    """Remembers which keys were read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


def compare(ours: Predictions, theirs: Predictions, *, resamples: int = 2000) -> dict[str, Any]:
    """Tests whether two models differ, on the task's headline metric.

    Returns:
      ``metric``, its values ``ours`` and ``theirs``, ``difference`` (ours - theirs) with the paired
      bootstrap's 95 % interval ``difference_low``, ``difference_high`` and two-sided
      ``p_bootstrap``, ``n``; where each example is right or wrong also McNemar's exact
      ``p_mcnemar``, ``only_ours_right`` and ``only_theirs_right``.

    Raises:
      UserError: other examples, another order of them, or another task.
    """
    _require_same(ours, theirs)
    task, n = ours.task, len(ours.example)
    ours_read, theirs_read = _needed(ours), _needed(theirs)

    def difference(rows: np.ndarray) -> float:
        return _metric(task, ours_read, rows) - _metric(theirs.task, theirs_read, rows)

    whole = np.arange(n)
    low, high, p = bootstrap_difference(difference, n, resamples=resamples)
    found = {
        "metric": task.metric,
        "better": task.better,
        "ours": _metric(task, ours_read, whole),
        "theirs": _metric(theirs.task, theirs_read, whole),
        "difference": difference(whole),
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
    """The arrays that the scores read: the others, such as logits, need no resampling."""
    recorded = _Recorded(predictions.observed)
    predictions.task.scores(recorded)
    return {name: predictions.observed[name] for name in recorded.read}


def _require_same(ours: Predictions, theirs: Predictions) -> None:
    if ours.task.name != theirs.task.name:
        raise UserError(
            f"--against: expected predictions of the task {ours.task.name!r}, found "
            f"{theirs.task.name!r}"
        )
    names = (getattr(p.task, "class_names", ()) for p in (ours, theirs))
    first, second = map(tuple, names)
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
            f"{_said(ours)}, {len(ours.example)} examples; found {_said(theirs)}, {reason}"
        )


def _said(predictions: Predictions) -> str:
    about = predictions.about
    return f"{about.get('source')} {about.get('split_text')!r}"

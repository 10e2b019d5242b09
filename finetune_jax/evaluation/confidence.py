"""Calibration of predicted probabilities, temperature scaling, and selective prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.metrics import calibration
from finetune_jax.tasks import Task

COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Shares of answered examples at which selective prediction is reported."""


def class_logits(task: Task, observed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns `Task.class_logits`; UserError for a task without class logits."""
    found = task.class_logits(observed)
    if found is None:
        raise UserError(
            f"confidence is defined for tasks with one class per example; expected the task "
            f"'classification', found {task.name!r}"
        )
    return found


def temperature_scores(
    task: Task, validation: dict[str, np.ndarray], observed: dict[str, np.ndarray]
) -> dict[str, float]:
    """Temperature scaling (Guo et al. 2017, arXiv 1706.04599).

    Args:
      task: the task of both splits.
      validation: what the task observed on the split on which the temperature is fitted.
      observed: what the task observed on the split that is scored.

    Returns:
      ``temperature``; ``nll``, ``ece`` and ``brier`` with the suffixes ``_before`` and ``_after``.
    """
    found = {"temperature": calibration.temperature(*class_logits(task, validation))}
    logits, labels = class_logits(task, observed)
    scaled = logits / found["temperature"]
    for name in ("nll", "ece", "brier"):
        score = getattr(calibration, name)
        found |= {f"{name}_before": score(logits, labels), f"{name}_after": score(scaled, labels)}
    return found


def selective_scores(task: Task, observed: dict[str, np.ndarray]) -> dict[str, Any]:
    """The risk-coverage curve at `COVERAGES`: error when only confident examples are answered.

    Returns:
      ``aurc``, the area under the curve, and three lists: ``coverage``, the share of examples that
      are answered; ``risk``, the share of errors among the answered examples; ``threshold``, the
      lowest probability that is answered.
    """
    logits, labels = class_logits(task, observed)
    confidence = np.sort(np.exp(calibration.log_softmax(logits)).max(-1))[::-1]
    coverage, risk = calibration.selective(logits, labels)
    places = np.maximum(np.ceil(np.array(COVERAGES) * len(labels) - 1e-9).astype(int), 1) - 1
    return {
        "aurc": calibration.area_under_risk(logits, labels),
        "coverage": coverage[places].tolist(),
        "risk": risk[places].tolist(),
        "threshold": confidence[places].tolist(),
    }

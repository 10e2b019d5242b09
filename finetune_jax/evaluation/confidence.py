"""How far the probabilities of a split can be believed, before and after temperature scaling."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.metrics import calibration
from finetune_jax.tasks import Task

COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def class_logits(task: Task, observed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`Task.class_logits`; UserError where the task has none."""
    found = task.class_logits(observed)
    if found is None:
        raise UserError(
            f"confidence is defined for one class of several; expected the task "
            f"'classification', found {task.name!r}"
        )
    return found


def temperature_scores(
    task: Task, validation: dict[str, np.ndarray], observed: dict[str, np.ndarray]
) -> dict[str, float]:
    """Temperature scaling (Guo et al. 2017, arXiv 1706.04599).

    Args:
      task: of both.
      validation: the observations that the temperature is fitted on.
      observed: those that are scored.

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
    """The selective-prediction curve at `COVERAGES`: error of the most confident share.

    Returns:
      ``aurc``, and lists of equal length: ``coverage``, ``risk``, and ``threshold``, the least
      probability that is answered.
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

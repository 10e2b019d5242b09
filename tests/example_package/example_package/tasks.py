"""A task: ``--config.task.name=example_package.tasks:Grading``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from finetune_jax.tasks import Classification


@dataclasses.dataclass(frozen=True)
class Grading(Classification):
    """Classification in which the neighbour of the right class counts as nearly right."""

    name = "grading"
    metric = "within_one"

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """Scores of a classification, and ``within_one`` in [0, 1]."""
        distance = np.abs(observed["logits"].argmax(-1) - observed["label"])
        return {**super().scores(observed), "within_one": float((distance <= 1).mean())}

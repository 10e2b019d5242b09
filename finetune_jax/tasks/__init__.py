"""Task types, one file each: head size, targets, loss, metrics, how a prediction reads."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError, nearest
from finetune_jax.tasks.base import ClassTask, Task, require_classification
from finetune_jax.tasks.classification import Classification
from finetune_jax.tasks.contrastive import SimCLR, SupCon
from finetune_jax.tasks.masked import MaskedPixels
from finetune_jax.tasks.multilabel import MultiLabel
from finetune_jax.tasks.ordinal import Ordinal
from finetune_jax.tasks.regression import Regression
from finetune_jax.tasks.segmentation import Segmentation
from finetune_jax.tasks.similarity import Similarity

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Classification,
        MultiLabel,
        Ordinal,
        Regression,
        Segmentation,
        Similarity,
        SimCLR,
        SupCon,
        MaskedPixels,
    )
}

__all__ = [
    "TASKS",
    "ClassTask",
    "Classification",
    "Task",
    "create",
    "from_json",
    "kind_of",
    "require_classification",
]


def kind_of(name: str) -> type[Task]:
    """The class of a task; UserError with the nearest name if there is none."""
    if name not in TASKS:
        raise UserError(f"task.name: unknown task {name!r}.{nearest(name, TASKS)}")
    return TASKS[name]


def create(settings: ConfigDict, source: Source, preprocess: Preprocess) -> Task:
    """The task that ``config.task`` names, for a source; UserError if they do not go together."""
    return kind_of(settings.name).create(settings, source, preprocess)


def from_json(values: dict[str, Any]) -> Task:
    """Rebuilds a task from `Task.to_json`; UserError for an unknown name."""
    options = dict(values)
    name = options.pop("name", None)
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}.{nearest(str(name), TASKS)}")
    return TASKS[name].from_json(options)

"""Task types, one file each: head size, targets, loss, metrics, and the reading of a prediction.

A task of another package is named by its import path, ``task.name="my_package:MyTask"``: a frozen
dataclass that is a subclass of `Task` (or of `ClassTask`, or of one of the tasks here), with the
class attributes `Task.name` and `Task.metric`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from finetune_jax import schema
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.doors import is_door, open_door
from finetune_jax.errors import UserError, nearest
from finetune_jax.tasks import loss
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
"""Classes of the tasks of this package, by the name in ``config.task.name``."""

__all__ = [
    "TASKS", "ClassTask", "Classification", "Task", "create", "doors_of", "from_json", "kind_of",
    "require_classification",
]  # fmt: skip


def kind_of(name: str) -> type[Task]:
    """The class of a task.

    Args:
      name: a key of `TASKS`, or ``package.module:NAME`` of a `Task` class in another package.

    Raises:
      UserError: no such task, with the nearest name, or an object that is no complete task.
    """
    if name in TASKS:
        return TASKS[name]
    if is_door(name):
        return _class_behind(name)
    raise UserError(
        f"task.name: unknown task {name!r}.{nearest(name, TASKS)} A task of another package is "
        f"named package.module:NAME."
    )


def _class_behind(name: str) -> type[Task]:
    found: type = open_door(name, "task.name", type)
    if not issubclass(found, Task):
        raise UserError(
            f"task.name: {name!r}: expected a subclass of finetune_jax.tasks.Task, found the class "
            f"{found.__name__}"
        )
    for attribute in ("name", "metric"):
        if not isinstance(getattr(found, attribute, None), str):
            raise UserError(
                f"task.name: {name!r}: the class {found.__name__} needs the class attribute "
                f"{attribute!r}, a text"
            )
    return found


def create(settings: ConfigDict, source: Source, preprocess: Preprocess) -> Task:
    """The task that ``config.task`` names, for the examples of a source.

    Args:
      settings: ``config.task``.
      source: an opened source.
      preprocess: preprocessing of the inputs.

    Raises:
      UserError: an unknown task, or one that does not fit the source, the inputs or the settings.
    """
    return kind_of(settings.name).create(settings, source, preprocess)


def from_json(values: Any) -> Task:
    """The inverse of `Task.to_json`; UserError for an unknown name, or wrong fields or values."""
    options = dict(schema.an_object(values, "task"))
    return kind_of(schema.text()(options.pop("name", None), "task.name")).from_json(options)


def doors_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The objects of other packages, ``package.module:name``, that a task's JSON names.

    Args:
      values: result of `Task.to_json`.
    """
    found = (str(values.get("name", "")), loss.door_of(str(values.get("loss", ""))))
    return tuple(name for name in found if is_door(name))

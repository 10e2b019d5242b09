"""Task types, one file each: head size, targets, loss, metrics, how a prediction reads."""

from __future__ import annotations

from typing import Any

from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError, nearest
from finetune_jax.tasks.base import Task
from finetune_jax.tasks.classification import Classification

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification,)}

__all__ = ["TASKS", "Classification", "Task", "create", "from_json"]


def create(settings: Any, source: Source) -> Task:
    """The task that ``config.task`` names, for a source; UserError if they do not go together."""
    if settings.name not in TASKS:
        raise UserError(f"task.name: unknown task {settings.name!r}.{nearest(settings.name, TASKS)}")
    return TASKS[settings.name].create(settings, source)


def from_json(values: dict[str, Any]) -> Task:
    """Rebuilds a task from `Task.to_json`; UserError for an unknown name."""
    options = dict(values)
    name = options.pop("name", None)
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}.{nearest(str(name), TASKS)}")
    return TASKS[name].from_json(options)

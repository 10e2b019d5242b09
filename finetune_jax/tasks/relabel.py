"""Targets of a source that numbers its classes in another way, or names its classes by numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_jax.data.classes import class_numbers, number_of, renumbered
from finetune_jax.errors import UserError
from finetune_jax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """The host part of a task for examples of a source that numbers the classes in its own way.

    Attributes:
      task: the task.
      numbers: number of the class in the task, by number of the class in the source.
    """

    task: Task
    numbers: tuple[int, ...]

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """The targets of an example, see `Task.host`."""
        return self.task.host(renumbered(example, self.numbers, len(self.task.class_names)))


@dataclasses.dataclass(frozen=True)
class ClassValues:
    """The host part of a task whose targets are numbers, for classes whose names are numbers.

    Attributes:
      task: the task.
      values: number that the name of a class stands for, by number of the class in the source.
    """

    task: Task
    values: tuple[float, ...]

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """The targets of an example, see `Task.host`."""
        label = example["label"]
        value = label if isinstance(label, str | bytes) else self.values[int(label)]
        return self.task.host({**example, "label": value})


def host_part(
    task: Task, source_names: Sequence[str], what: str
) -> Task | Relabelled | ClassValues:
    """Returns the host part of a task for examples of a source.

    Args:
      task: the task.
      source_names: names of the classes of the source; empty if it has none, such as numbers.
      what: name of the source, for messages.

    Raises:
      UserError: the source has a class that the task does not have; or the task needs numbers, and
        the name of a class is no number.
    """
    if not source_names:
        return task
    if task.numeric:
        values = [number_of(name) for name in source_names]
        for name, value in zip(source_names, values, strict=True):
            if value is None:
                raise UserError(
                    f"task.name: {task.name} needs numbers, and the labels of {what} are names, "
                    f"such as {name!r:.60}"
                )
        exact = tuple(value for value in values if value is not None)
        return task if exact == tuple(range(len(exact))) else ClassValues(task, exact)
    if not task.class_names:
        return task
    numbers = class_numbers(source_names, task.class_names, what)
    # An array with a value for each class of the source is longer for a task with more classes.
    fewer = task.labels == "classes" and len(numbers) < len(task.class_names)
    same = numbers == tuple(range(len(numbers))) and not fewer
    return task if same else Relabelled(task, numbers)

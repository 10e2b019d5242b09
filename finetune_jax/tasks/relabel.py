"""Classes are matched by name: a source may number the classes of a task in another way.

A source numbers its classes in the order of its own names, so the same class has another number
where a class is missing.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.tables import shorten
from finetune_jax.tasks.base import Task

_SHOWN = 8


def class_numbers(found: Sequence[str], known: Sequence[str], what: str) -> tuple[int, ...]:
    """Returns the number in `known` of each class in `found`.

    Names are equal if they are the same text, in whatever Unicode form.

    Args:
      found: names of the classes of some data, in the order of their numbers.
      known: names of the classes that a model answers, in the order of its outputs.
      what: name of the data, for the message.

    Raises:
      UserError: `found` is empty or has a class that is not in `known`; the message lists both.
    """
    places = {unicodedata.normalize("NFC", name): number for number, name in enumerate(known)}
    wanted = [unicodedata.normalize("NFC", name) for name in found]
    unknown = [name for name in wanted if name not in places]
    if unknown or not found:
        listed = f"classes that the model does not know: {_listed(unknown)}"
        raise UserError(
            f"{what} has {listed if unknown else 'no classes'}\n  data:  {_listed(found)}\n  "
            f"model: {_listed(known)}"
        )
    return tuple(places[name] for name in wanted)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(shorten(name, 40) for name in names[:_SHOWN])
    return shown + f", … ({len(names)})" * (len(names) > _SHOWN) if names else "none"


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
        return self.task.host(
            {
                **example,
                **{k: self._renumber(example[k]) for k in ("label", "mask") if k in example},
            }
        )

    def _renumber(self, value: Any) -> Any:
        """Class numbers of any shape; names, and values that are no class, stay as they are."""
        if isinstance(value, str | bytes):
            return value
        if isinstance(value, list | tuple):
            return [self._renumber(item) for item in value]
        values = np.asarray(value)
        if values.dtype.kind not in "iu":
            return value
        table = np.arange(max(256, len(self.numbers)))
        table[: len(self.numbers)] = self.numbers
        inside = (values >= 0) & (values < len(table))
        renumbered = np.where(inside, table[np.where(inside, values, 0)], values)
        return renumbered.astype(values.dtype) if values.ndim else int(renumbered)


def host_part(task: Task, source_names: Sequence[str], what: str) -> Task | Relabelled:
    """Returns the host part of a task for examples of a source.

    Args:
      task: the task, of a model that is trained.
      source_names: names of the classes of the source; empty if it has none, such as numbers.
      what: name of the source, for messages.

    Raises:
      UserError: as `class_numbers`.
    """
    if not source_names or not task.class_names:
        return task
    numbers = class_numbers(source_names, task.class_names, what)
    return task if numbers == tuple(range(len(numbers))) else Relabelled(task, numbers)

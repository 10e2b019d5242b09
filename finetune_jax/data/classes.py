"""Names of classes and their numbers: sorted, matched by name, or in an order that a user gives."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from finetune_jax.data.examples import Examples, labels_of
from finetune_jax.errors import UserError
from finetune_jax.tables import shorten

_SHOWN = 8
_OUTER = re.compile(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def number_of(name: Any) -> float | None:
    """Returns the finite number that a text or a value is; None for any other one.

    A text is a number in decimal notation with ASCII digits, such as ``-1.5`` or ``2e3``. Python's
    ``float`` also takes ``1_000``, which is more often a name.
    """
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    if isinstance(name, str) and not _NUMBER.fullmatch(name.strip()):
        return None
    try:
        number = float(name)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def class_name(text: str) -> str:
    """The name of a class without spaces around it, and in the Unicode form NFC.

    File systems and editors write "é" in two forms, as one character or as two. Web pages and
    spreadsheets leave spaces of no width and byte order marks at the ends of texts.
    """
    return unicodedata.normalize("NFC", _OUTER.sub("", text))


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names of classes in the order of their numbers, or as texts if one is no number."""
    unique = set(names)
    # As a text "10" comes before "2".
    if all(number_of(name) is not None for name in unique):
        return tuple(sorted(unique, key=lambda name: (float(name), name)))
    return tuple(sorted(unique))


def class_numbers(found: Sequence[str], known: Sequence[str], what: str) -> tuple[int, ...]:
    """Returns the number in `known` of each class in `found`.

    Names are equal if they are the same text, in whatever Unicode form.

    Args:
      found: names of the classes of some data, in the order of their numbers.
      known: names of the classes that a model predicts, in the order of its outputs.
      what: name of the data, for the message.

    Raises:
      UserError: `found` is empty or has a class that is not in `known`; the message lists both.
    """
    exact = {name: number for number, name in enumerate(known)}
    # Equal spelling has priority: two Unicode forms of one name may be two classes of the model.
    places = {class_name(name): n for name, n in exact.items()} | exact
    wanted = [n if n in exact else class_name(n) for n in found]
    unknown = [name for name in wanted if name not in places]
    if unknown or not found:
        what_is_wrong = f"classes that the model does not know: {listed(unknown)}"
        raise UserError(
            f"{what} has {what_is_wrong if unknown else 'no classes'}\n  data:  {listed(found)}\n  "
            f"model: {listed(known)}"
        )
    return tuple(places[name] for name in wanted)


def listed(names: Sequence[str]) -> str:
    """The first names of classes, and the number of all if there are more, for a message."""
    shown = ", ".join(shorten(name, 40) for name in names[:_SHOWN])
    return shown + f", … ({len(names)})" * (len(names) > _SHOWN) if names else "none"


def renumbered(
    example: dict[str, Any], numbers: Sequence[int], count: int | None = None
) -> dict[str, Any]:
    """Returns an example whose ``label`` and ``mask`` have other class numbers.

    Args:
      example: values by column. Class numbers may be of any shape; names, and values that are no
        class, such as the pixels of a mask without a class, stay as they are. A label that is an
        array of floats with a value for each class is put in the new order; a class that the data
        does not have is then nan, which is unknown.
      numbers: new number of each class.
      count: number of classes afterwards; None for that of `numbers`.
    """
    changed = dict(example)
    if "label" in example:
        changed["label"] = _renumber_label(example["label"], numbers, count or len(numbers))
    if "mask" in example:
        changed["mask"] = _renumber(example["mask"], numbers)
    return changed


def _renumber_label(label: Any, numbers: Sequence[int], count: int) -> Any:
    hot = isinstance(label, np.ndarray) and label.shape == (len(numbers),)
    if not (hot and label.dtype.kind in "fb"):
        return _renumber(label, numbers)
    # Several classes that become one are one label, which is known to be 1 if one of them is.
    true, unknown = np.zeros(count, bool), np.ones(count, bool)
    unknown[list(numbers)] = False
    np.logical_or.at(true, list(numbers), label == 1)
    np.logical_or.at(unknown, list(numbers), label != label)
    return np.where(true, 1, np.where(unknown, np.nan, 0)).astype(np.float32)


def _renumber(value: Any, numbers: Sequence[int]) -> Any:
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, list | tuple):
        return [_renumber(item, numbers) for item in value]
    values = np.asarray(value)
    if values.dtype.kind not in "iu":
        return value
    table = np.arange(max(256, len(numbers)))
    table[: len(numbers)] = numbers
    inside = (values >= 0) & (values < len(table))
    found = np.where(inside, table[np.where(inside, values, 0)], values)
    return found.astype(values.dtype) if values.ndim else int(found)


@dataclasses.dataclass(frozen=True)
class RenumberedExamples:
    """Examples of a split with other class numbers; see `renumbered`."""

    examples: Examples
    numbers: tuple[int, ...]
    count: int | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return renumbered(self.examples[index], self.numbers, self.count)

    def labels(self) -> Sequence[Any]:
        """See `finetune_jax.data.examples.Labelled`."""
        count = self.count or len(self.numbers)
        return [_renumber_label(x, self.numbers, count) for x in labels_of(self.examples)]

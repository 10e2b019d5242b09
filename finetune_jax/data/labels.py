"""Labels of a table, encoded as class numbers, numbers or texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from finetune_jax.data.classes import class_name, number_of, sorted_names
from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError

KINDS = ("", "class", "classes", "number", "text")


def encode_labels(
    values: Sequence[Any], options: Options, where: str
) -> tuple[tuple[str, ...], list[Any]]:
    """Encodes the labels of a column.

    Args:
      values: one text or number per example.
      options: ``label_kind`` is the kind of the labels. ``class``: each value is the name of a
        class; classes are numbered in the sorted order of their names (in the order of the numbers,
        if all names are numbers). ``classes``: each value is several names joined by ``label_sep``.
        ``number``: each value is a number. ``text``: values are kept as texts. Empty: ``number``
        where every value is a number, and ``class`` where no value is a number. A value ends before
        the first ``label_until`` in it, if that option is not empty.
      where: file and column, for messages.

    Returns:
      (class names, empty for numbers and texts; one label per example: int, list of int, float or
      str).

    Raises:
      UserError: an empty label, a label that should be a number and is not, or, where the kind is
        inferred, numbers together with names.
    """
    kind, until = options.label_kind, options.label_until
    if until:
        values = [str(v).split(until, 1)[0] for v in values]
    if kind == "text":
        return (), [str(v) for v in values]
    for row, value in enumerate(values):
        if str(value).strip() == "" and kind != "classes":
            raise UserError(f"{where}: the label of example {row} is empty")
    numbers = [number_of(v) for v in values]
    if not kind:
        known = sum(n is not None for n in numbers)
        if known not in (0, len(values)):
            text = next(v for v, n in zip(values, numbers, strict=True) if n is None)
            number = next(v for v, n in zip(values, numbers, strict=True) if n is not None)
            raise UserError(
                f"{where}: labels are numbers, such as {number!r}, and names, such as {text!r}; "
                f"set data.label_kind to 'class' if all are names of classes"
            )
        kind = "number" if known else "class"
    if kind == "number":
        for row, (value, number) in enumerate(zip(values, numbers, strict=True)):
            if number is None:
                raise UserError(
                    f"{where}: expected a number as the label of example {row}, found {value!r}"
                )
        return (), numbers
    texts = [class_name(str(v)) for v in values]
    if kind == "classes":
        parts = [[p.strip() for p in t.split(options.label_sep) if p.strip()] for t in texts]
        names = sorted_names({p for row in parts for p in row})
        return names, [[names.index(p) for p in row] for row in parts]
    names = sorted_names(set(texts))
    index = {name: i for i, name in enumerate(names)}
    return names, [index[t] for t in texts]


def present(labels: Iterable[Any]) -> frozenset[int]:
    """The numbers of the classes of some examples; a label is a number or a list of numbers."""
    found: set[int] = set()
    for label in labels:
        found.update(label if isinstance(label, list) else [label])
    return frozenset(found)

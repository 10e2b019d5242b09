"""Labels as a table writes them, to what tasks read: class numbers, or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError

KINDS = ("", "class", "classes", "number", "text")


def encode_labels(
    values: Sequence[Any], options: Options, where: str
) -> tuple[tuple[str, ...], list[Any]]:
    """Class names and one label per example.

    Args:
      values: texts or numbers, one per example.
      options: ``label_kind`` says what they are: ``class`` names, of which the sorted ones are
        numbered (as numbers, if all are); ``classes``: several names joined by ``label_sep``;
        ``number``; ``text``, kept as it is. Empty infers: ``number`` where every value is one,
        ``class`` where none is. ``label_until`` cuts a text before the first such string.
      where: what the column is, for messages.

    Returns:
      Class names (none for numbers and texts), and labels: int, list of int, float or str.

    Raises:
      UserError: an empty label, one that is no number, or a mixture that cannot be inferred.
    """
    kind, until = options.label_kind, options.label_until
    if until:
        values = [str(v).split(until, 1)[0] for v in values]
    if kind == "text":
        return (), [str(v) for v in values]
    for row, value in enumerate(values):
        if str(value).strip() == "" and kind != "classes":
            raise UserError(f"{where}: the label of example {row} is empty")
    numbers = [_number(v) for v in values]
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
    texts = [str(v).strip() for v in values]
    if kind == "classes":
        parts = [[p.strip() for p in t.split(options.label_sep) if p.strip()] for t in texts]
        names = _sorted({p for row in parts for p in row})
        return names, [[names.index(p) for p in row] for row in parts]
    names = _sorted(set(texts))
    index = {name: i for i, name in enumerate(names)}
    return names, [index[t] for t in texts]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _sorted(names: set[str]) -> tuple[str, ...]:
    # Not by text where all are numbers: "10" comes after "2".
    if all(_number(n) is not None for n in names):
        return tuple(sorted(names, key=lambda n: (float(n), n)))
    return tuple(sorted(names))

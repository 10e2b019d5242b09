"""Labels of a table, encoded as class numbers, numbers or texts; what is no label is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from finetune_jax.data.classes import class_name, number_of, sorted_names
from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError

KINDS = ("", "class", "classes", "number", "text")

Place = Callable[[int], str]
"""Where the row with a number stands, such as ``data.csv, line 7``, for a message."""

# What pandas, spreadsheets and databases write for a value that is missing or is no number.
_MISSING = frozenset(("", "NA", "None", "NaT", "NULL"))
_MISSING_IN_ANY_CASE = frozenset(
    (
        "nan", "-nan", "+nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity", "null",
        "n/a", "<na>", "#n/a", "#na", "#n/a n/a", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan",
        "#value!", "#div/0!", "#ref!", "#name?", "#num!", "#null!",
    )
)  # fmt: skip
_WITH_COMMA = re.compile(r"[+-]?\d[\d.]*(,\d+)+(\.\d+)?")
_WITH_UNIT = re.compile(r"\D{0,6}\d[\d.,\s]*\D{0,6}")


def is_missing(value: Any) -> bool:
    """Whether a value of a table stands for none: None, not finite, "", "NaN", "NA", "#N/A", …."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return True
    text = str(value).strip()
    return text in _MISSING or text.casefold() in _MISSING_IN_ANY_CASE


def encode_labels(
    values: Sequence[Any], options: Options, where: str, place: Place | None = None
) -> tuple[tuple[str, ...], list[Any]]:
    """Encodes the labels of a column.

    Args:
      values: one text or number per example; with the kind ``classes`` also a list of names.
      options: ``label_kind`` is the kind of the labels. ``class``: each value is the name of a
        class; classes are numbered in the sorted order of their names (in the order of the numbers,
        if all names are numbers). ``classes``: each value is several names joined by ``label_sep``.
        ``number``: each value is a number. ``text``: values are kept as texts. Empty: ``number``
        where the task reads numbers or every value is a number, and ``class`` where no value is a
        number. A value ends before the first ``label_until`` in it, if that option is not empty.
        A name in ``class_order`` is a name, even if it is ``NA`` or another text that stands for a
        missing value elsewhere; with ``classes`` every text is a name.
      where: file and column, for messages.
      place: where a row stands; None names rows by number.

    Returns:
      (class names, empty for numbers and texts; one label per example: int, list of int, float or
      str).

    Raises:
      UserError: a missing label, a label that should be a number and is not, or, where the kind is
        inferred, numbers together with names.
    """
    at: Place = place or (lambda row: f"{where}: example {row}")
    kind, until = options.label_kind, options.label_until
    if until:
        values = [str(v).split(until, 1)[0] for v in values]
    if kind == "text":
        return (), [str(v) for v in values]
    lists = [isinstance(v, list | tuple) for v in values]
    if kind == "classes" or (not kind and any(lists)):
        return _several(values, options, at)
    texts = [class_name(str(v)) for v in values]
    if any(lists):
        raise UserError(
            f"{at(lists.index(True))}: a list of labels, {texts[lists.index(True)]:.60}; expected "
            f"one label: set data.label_kind to 'classes' for several"
        )
    _require_labels(values, texts, options, at)
    numbers = [number_of(v) for v in values]
    if not kind:
        kind = _inferred_kind(texts, numbers, options, at)
    if kind == "number":
        for row, number in enumerate(numbers):
            if number is None:
                raise UserError(f"{at(row)}: {not_a_number(texts[row])}")
        return (), numbers
    names = sorted_names(set(texts))
    index = {name: i for i, name in enumerate(names)}
    return names, [index[t] for t in texts]


def _inferred_kind(
    texts: Sequence[str], numbers: Sequence[float | None], options: Options, at: Place
) -> str:
    known = sum(number is not None for number in numbers)
    if options.task_labels == "number" or known == len(texts):
        return "number"
    if known:
        name = next(i for i, number in enumerate(numbers) if number is None)
        number = next(i for i, value in enumerate(numbers) if value is not None)
        raise UserError(
            f"{at(name)}: labels are numbers, such as {texts[number]!r}, and names, such as "
            f"{texts[name]!r} here; set data.label_kind to 'class' if all are names of classes"
        )
    return "class"


def _several(
    values: Sequence[Any], options: Options, at: Place
) -> tuple[tuple[str, ...], list[list[int]]]:
    """Names and numbers of several labels per example; no label is an empty text or list."""
    rows: list[list[str]] = []
    for row, value in enumerate(values):
        listed = isinstance(value, list | tuple)
        if listed and not options.label_kind and any(not isinstance(v, str) for v in value):
            raise UserError(
                f"{at(row)}: the label is a list, {str(value):.60}; set data.label_kind to "
                f"'classes' if its values are names of classes, or give each label a column of 0 "
                f"and 1 and list these columns in data.label_columns"
            )
        parts = value if listed else str(value).split(options.label_sep)
        names = [class_name(str(part)) for part in parts]
        rows.append([name for name in names if name])
        if value is None or any(_is_missing(n, n, options) for n in rows[-1]):
            raise UserError(
                f"{at(row)}: {str(value)!r:.60} stands for missing labels; write an empty text for "
                f"no label, or list the columns of labels that may be unknown in "
                f"data.label_columns. {_AS_A_NAME}"
            )
    names_ = sorted_names({name for row in rows for name in row})
    index = {name: i for i, name in enumerate(names_)}
    return names_, [[index[name] for name in row] for row in rows]


_AS_A_NAME = (
    "If it is the name of a class, list all classes in data.class_order, or in a file that "
    "data.classes names; examples of classes without a line in that file are left out."
)


def _is_missing(value: Any, text: str, options: Options) -> bool:
    # A file of classes lists what is a class, and leaves out examples of anything else.
    return is_missing(value) and not options.classes and text not in options.class_order


def _require_labels(
    values: Sequence[Any], texts: Sequence[str], options: Options, at: Place
) -> None:
    """Raises UserError for missing labels; names the first and counts the others."""
    missing = [row for row, value in enumerate(values) if _is_missing(value, texts[row], options)]
    if not missing:
        return
    row, others = missing[0], len(missing) - 1
    text = texts[row]
    what = f"the label {text!r} stands for a missing value" if text else "the label is empty"
    more = f" (and so in {others} more rows)" if others else ""
    hint = f" {_AS_A_NAME}" if text and options.task_labels != "number" else ""
    hint += " With data.label_column='' no label is read." if not options.task_labels else ""
    raise UserError(f"{at(row)}: {what}{more}; fill in the label or remove the row.{hint}")


def not_a_number(text: str) -> str:
    """What is wrong with a label that should be a number, and what to do: a part of a message."""
    found = f"expected a number as the label, found {text!r:.60}"
    if _WITH_COMMA.fullmatch(text):
        return (
            f"{found}; a comma is read neither as a decimal point nor between thousands: write "
            f"2.5 or 1000"
        )
    if _WITH_UNIT.fullmatch(text):
        return f"{found}; write the number alone, as in -1.5 or 2e3, without a unit or a sign"
    return f"{found}; for names of classes the task is 'classification' (task.name)"


def present(labels: Iterable[Any]) -> frozenset[int]:
    """The numbers of the classes of some examples; a label has the forms of `encode_labels`.

    An array has a value for each class, which is 1 if the example has the class.
    """
    found: set[int] = set()
    for label in labels:
        if isinstance(label, np.ndarray):
            label = np.flatnonzero(label == 1).tolist()
        found.update(label if isinstance(label, list) else [label])
    return frozenset(found)

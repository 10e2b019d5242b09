"""Labels of a table, encoded as class numbers, numbers or texts; what is no label is refused."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from finetune_jax.data.classes import class_name, number_of, sorted_names
from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError
from finetune_jax.progress import say

KINDS = ("", "class", "classes", "number", "text")

Place = Callable[[int], str]
"""Where the row with a number stands, such as ``data.csv, line 7``, for a message."""

# Texts that pandas, spreadsheets and databases write for a value that is missing or no number.
_MISSING = frozenset(("", "NA", "None", "NaT", "NULL"))
_MISSING_IN_ANY_CASE = frozenset(
    (
        "nan", "-nan", "+nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity", "null",
        "n/a", "<na>", "#n/a", "#na", "#n/a n/a", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan",
        "#value!", "#div/0!", "#ref!", "#name?", "#num!", "#null!",
    )
)  # fmt: skip
_PLACEHOLDERS = ("-", "--", "?", "-1")
_WHOLE = re.compile(r"-?\d+\.0+", re.ASCII)
_WITH_COMMA = re.compile(r"[+-]?\d[\d.]*(,\d+)+(\.\d+)?")
_WITH_UNIT = re.compile(r"\D{0,6}\d[\d.,\s]*\D{0,6}")


def is_missing(value: Any) -> bool:
    """Whether a value of a table means a missing value: None, not finite, "", "NaN", "NA", …."""
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
        ``number``: each value is a number. ``text``: values are kept as texts. Empty: ``classes``
        where the task reads several labels and a value has ``label_sep`` in it, ``number`` where
        the task reads numbers or every value is a number, and ``class`` where no value is a number.
        A value ends before the first ``label_until`` in it, if that option is not empty. A name in
        ``class_order`` is a name, even if it is ``NA`` or another text that stands for a missing
        value elsewhere; with ``classes`` every text is a name.
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
    if not kind and (any(lists) or _has_several(values, options)):
        return _several(values, options, at)
    if kind == "classes":
        return _several(values, options, at)
    if any(lists):
        row = lists.index(True)
        raise UserError(
            f"{at(row)}: a list of labels, {str(values[row]):.60}; expected one label: set "
            f"data.label_kind to 'classes' for several"
        )
    texts = _each(lambda v: class_name(str(v)), values)
    _require_labels(values, texts, options, at)
    numbers = [None] * len(values) if kind == "class" else _each(number_of, values)
    if not kind:
        kind = _inferred_kind(texts, numbers, options, at)
        if kind == "class" and options.task_labels != "classes":
            _require_no_lists(texts, options, at)
    if kind == "number":
        for row, number in enumerate(numbers):
            if number is None:
                raise UserError(f"{at(row)}: {not_a_number(texts[row])}")
        return (), numbers
    spelled = {*texts}
    if all(isinstance(value, str) for value in values):
        texts = _whole_numbers_once(texts, options)
    names = sorted_names(set(texts))
    say_alike(sorted_names(spelled), where, merged=len(names) < len(spelled))
    _say_placeholders(texts, names, where)
    if options.task_labels == "classes" and not options.label_kind:
        _require_single(texts, names, options, at)
    index = {name: i for i, name in enumerate(names)}
    return names, [index[t] for t in texts]


def say_alike(names: Sequence[str], where: str, merged: bool = False) -> None:
    """Says which names of classes may be one class that is written in several ways.

    Args:
      names: the names.
      where: file and column.
      merged: whether whole numbers with and without ``.0`` are one class already.
    """
    alike: dict[Any, list[str]] = {}
    for name in names:
        number = number_of(name)
        alike.setdefault(_visible(name) if number is None else number, []).append(name)
    found = [", ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if found:
        done = "whole numbers are read without their .0, and " if merged else ""
        say(
            f"{where}: {len(found)} classes are written in several ways, such as {found[0]}; "
            f"{done}a file named by data.classes merges classes"
        )


def _visible(name: str) -> str:
    """The name in small letters, without characters that are not seen."""
    return "".join(c for c in name.casefold() if unicodedata.category(c) != "Cf")


def _whole_numbers_once(texts: list[str], options: Options) -> list[str]:
    """Names with ``0.0`` as ``0`` where both are written, as pandas writes parts of a table."""
    if options.classes or options.class_order:
        return texts
    known = {*texts}
    short = {t: t.partition(".")[0] for t in known if _WHOLE.fullmatch(t)}
    return [short[t] if short.get(t) in known else t for t in texts]


def _say_placeholders(texts: Sequence[str], names: Sequence[str], where: str) -> None:
    """Says which names of classes stand for no label in published tables, such as those of SNLI."""
    others = any(name.isalnum() for name in names if name not in _PLACEHOLDERS)
    for name in (n for n in names if n in _PLACEHOLDERS and others and len(names) > 2):
        say(
            f"{where}: {name!r} is one of the classes, of {texts.count(name)} examples; where it "
            f"stands for no label, a file named by data.classes, without a line for it, leaves "
            f"these examples out"
        )


def _each(function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    """The results of a function, which is called once for equal values of one type."""
    known = {key: function(key[1]) for key in {(type(value), value) for value in values}}
    return [known[type(value), value] for value in values]


def _has_several(values: Sequence[Any], options: Options) -> bool:
    """Whether texts have names joined by ``label_sep``, for a task of several labels."""
    return options.task_labels == "classes" and any(
        isinstance(v, str) and options.label_sep in v for v in values
    )


def _require_single(
    texts: Sequence[str], names: Sequence[str], options: Options, at: Place
) -> None:
    """Raises UserError for several labels in one text that are joined in another way."""
    _require_no_lists(texts, options, at)
    if options.class_order or options.classes:
        return
    for other in ";,/+& ":
        joined = [row for row, text in enumerate(texts) if other in text]
        parts = {part.strip() for name in names for part in name.split(other)}
        # Names with a comma in them, such as "cat, wild", have more parts than there are names.
        if joined and len(parts) <= len(names):
            raise UserError(
                f"{at(joined[0])}: {texts[joined[0]]!r:.60} may be several labels; set "
                f"data.label_kind to 'classes' and data.label_sep to {other!r}, or, if it is one "
                f"name, data.label_kind to 'class'"
            )


def _require_no_lists(texts: Sequence[str], options: Options, at: Place) -> None:
    """Raises UserError for lists that were written as texts, as pandas writes them."""
    for row, text in enumerate(texts):
        if text.startswith("[") and text.endswith("]"):
            one = options.task_labels != "classes"
            what = ", and task.name='multilabel' learns several labels" if one else ""
            name = "; if it is a name, set data.label_kind to 'class'" if one else ""
            raise UserError(
                f"{at(row)}: the label is a list as a text, {text:.60}; write the names with "
                f"{options.label_sep!r} between them, or give each label a column of 0 and 1 and "
                f"list these columns in data.label_columns{what}{name}"
            )


def _inferred_kind(
    texts: Sequence[str], numbers: Sequence[float | None], options: Options, at: Place
) -> str:
    known = sum(number is not None for number in numbers)
    if options.task_labels == "number" or known == len(texts):
        return "number"
    if known:
        name = next(i for i, number in enumerate(numbers) if number is None)
        number = next(i for i, value in enumerate(numbers) if value is not None)
        few = number if known < len(texts) - known else name
        raise UserError(
            f"{at(few)}: labels are numbers, such as {texts[number]!r}"
            f"{' here' * (few == number)}, and names, such as {texts[name]!r}"
            f"{' here' * (few == name)}; correct this row if it is no example, or set "
            f"data.label_kind to 'class' if all are names of classes"
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
    known = _each(is_missing, values)
    known = [] if options.classes else [row for row, lacks in enumerate(known) if lacks]
    missing = [row for row in known if texts[row] not in options.class_order]
    if not missing:
        return
    row, others = missing[0], len(missing) - 1
    text = texts[row]
    what = f"the label {text!r} stands for a missing value" if text else "the label is empty"
    more = f" (and so in {others} more rows)" if others else ""
    hint = f" {_AS_A_NAME}" if text and options.task_labels != "number" else ""
    if not options.task_labels:
        hint += " With data.label_column='' no label is read."
    elif options.task_labels == "classes" and not text:
        hint += " With data.label_kind='classes' an empty text means no label."
    raise UserError(f"{at(row)}: {what}{more}; fill in the label or remove the row.{hint}")


def not_a_number(text: str) -> str:
    """What is wrong with a label that should be a number, and what to do: a part of a message."""
    found = f"expected a number as the label, found {text!r:.60}"
    if re.fullmatch(r"[+-]?[\d.]+e[+]?\d+", text, re.ASCII | re.IGNORECASE):
        return f"{found}, which is too large"
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

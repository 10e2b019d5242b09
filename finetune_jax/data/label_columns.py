"""Labels in several columns of 0 and 1: one-hot classes, and labels of which some are unknown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from finetune_jax.data.classes import number_of
from finetune_jax.data.labels import Place, is_missing
from finetune_jax.data.listing import pick
from finetune_jax.data.sources import Options
from finetune_jax.errors import UserError

_WORDS = {"true": 1.0, "false": 0.0}


def find_columns(options: Options, names: Iterable[str], where: str) -> tuple[str, ...]:
    """The columns of the data that ``data.label_columns`` names, in its order.

    Args:
      options: ``label_columns``, and the options that do not fit them.
      names: names of all columns of the data.
      where: name of the data, for messages.

    Raises:
      UserError: a missing or repeated column, ``data.label_column`` beside them, or a kind of label
        that is not in several columns.
    """
    wanted, names = options.label_columns, list(names)
    if len({*wanted}) < len(wanted):
        raise UserError(f"data.label_columns: a column is there twice: {', '.join(wanted)}")
    if options.label_column not in ("label", ""):
        raise UserError(
            f"data.label_column: {options.label_column!r} beside data.label_columns; expected one "
            f"of the two"
        )
    kind = options.label_kind or options.task_labels
    if kind in ("number", "text"):
        raise UserError(
            f"data.label_columns: columns of 0 and 1 are classes or several labels, and the "
            f"labels here are of the kind {kind!r}: one real value or text per example is in "
            f"data.label_column"
        )
    return tuple(pick(name, "", names, "label_columns", where) for name in wanted)


def encode_columns(columns: Sequence[Sequence[Any]], options: Options, place: Place) -> list[Any]:
    """Encodes labels in columns; the columns are the classes, in their order.

    Args:
      columns: values of all examples, by column. A value is 0, 1, True or False as a value or a
        text, or stands for a missing value (`labels.is_missing`), which makes the label unknown.
      options: ``label_kind``, or what the task reads: ``class`` for one 1 per example, ``classes``
        for any number. Empty: ``class`` if every example has one 1 and no unknown label.
      place: where a row stands.

    Returns:
      The class number of each example, or an array f32[columns] with 0, 1, and nan for unknown.

    Raises:
      UserError: another value, an example without any known label, or, for ``class``, an example
        that does not have one 1.
    """
    kind = options.label_kind or options.task_labels
    table = np.array([[_value(v) for v in column] for column in columns], np.float32).T
    for row, column in np.argwhere(np.isinf(table))[:1]:
        raise UserError(
            f"{place(row)}, column {options.label_columns[column]!r}: expected 0, 1, or nothing "
            f"for an unknown label, found {columns[column][row]!r:.60}"
        )
    several = np.flatnonzero((table == 1).sum(1) != 1)
    unknown = np.flatnonzero(np.isnan(table).any(1))
    if kind == "class" and (len(several) or len(unknown)):
        row = int(min([*several[:1], *unknown[:1]]))
        found = f"{int((table[row] == 1).sum())} of {len(columns)} columns are 1"
        if np.isnan(table[row]).any():
            found += f" and {int(np.isnan(table[row]).sum())} are unknown"
        raise UserError(
            f"{place(row)}: expected a 1 in exactly one of data.label_columns, and {found}; with "
            f"any number of labels per example the task is 'multilabel' (task.name)"
        )
    if kind == "class" or (not kind and not len(several) and not len(unknown)):
        return [int(number) for number in table.argmax(1)]
    for row in np.flatnonzero(np.isnan(table).all(1))[:1]:
        raise UserError(f"{place(row)}: all labels of the example are unknown; remove the row")
    return list(table)


def strata(labels: Sequence[Any]) -> list[Any]:
    """Values by which labels can be sorted, for `splits.hold_out`."""
    return [
        tuple(np.nan_to_num(label, nan=-1).tolist()) if isinstance(label, np.ndarray) else label
        for label in labels
    ]


def unknown_of(labels: Sequence[Any]) -> int:
    """Number of unknown labels."""
    return sum(int(np.isnan(x).sum()) for x in labels if isinstance(x, np.ndarray))


def _value(value: Any) -> float:
    """0, 1, nan for a missing value, and infinity for any other one."""
    number = number_of(value)
    if number in (0, 1):
        return number
    if is_missing(value) and "inf" not in str(value).casefold():
        return np.nan
    return _WORDS.get(str(value).strip().casefold(), np.inf)

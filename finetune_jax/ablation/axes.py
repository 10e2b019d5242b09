"""Axes of an ablation: lists of config overrides, and functions that combine the lists.

    product(over("scheme", ["linear_probe", "full"]), over("batch_norm", ["frozen", "track"]))

gives four overrides. Any iterable of dicts of config keys can be an axis, such as a generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from finetune_jax.errors import UserError

Overrides = dict[str, Any]
"""Values by config key, such as ``{"scheme": "full", "optimizer.learning_rate": 0.1}``."""


def over(key: str, values: Iterable[Any]) -> list[Overrides]:
    """One override for each value of a config key.

    Raises:
      UserError: `values` is one text or no list.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(
            f"over({key!r}, …): expected a list of values, [{values!r}], found {values!r}"
        )
    return [{key: value} for value in values]


def product(*axes: Iterable[Overrides]) -> list[Overrides]:
    """Every combination of the axes; the last axis varies fastest.

    Raises:
      UserError: two axes set the same key.
    """
    return [_merged(parts) for parts in itertools.product(*map(list, axes))]


def zipped(*axes: Iterable[Overrides]) -> list[Overrides]:
    """The first elements of all axes merged, then the second elements merged, and so on.

    Raises:
      UserError: the axes have different lengths, or two axes set the same key.
    """
    lists = [list(axis) for axis in axes]
    if len({len(axis) for axis in lists}) > 1:
        found = ", ".join(str(len(axis)) for axis in lists)
        raise UserError(f"zipped: expected axes of one length, found {found}")
    return [_merged(parts) for parts in zip(*lists, strict=True)]


def chain(*axes: Iterable[Overrides]) -> list[Overrides]:
    """The elements of the first axis, then the elements of the second axis, and so on."""
    return list(itertools.chain(*axes))


def _merged(parts: Sequence[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        if repeated := merged.keys() & part.keys():
            raise UserError(f"two axes set {', '.join(sorted(repeated))}; join them with chain")
        merged |= part
    return merged

"""What varies over the arms of an ablation, as lists of config overrides that combine.

    product(over("scheme", ["linear_probe", "full"]), over("batch_norm", ["frozen", "track"]))

gives four overrides. Anything that yields dicts of config keys does as well, such as a generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from finetune_jax.errors import UserError

Overrides = dict[str, Any]
"""Values by config key, such as ``{"scheme": "full", "optimizer.learning_rate": 0.1}``."""


def over(key: str, values: Iterable[Any]) -> list[Overrides]:
    """One override per value of a config key."""
    return [{key: value} for value in values]


def product(*axes: Iterable[Overrides]) -> list[Overrides]:
    """Every combination; the last axis varies fastest.

    Raises:
      UserError: two axes set the same key.
    """
    return [_joined(parts) for parts in itertools.product(*map(list, axes))]


def zipped(*axes: Iterable[Overrides]) -> list[Overrides]:
    """The first of each axis together, then the second of each, and so on.

    Raises:
      UserError: axes of different lengths, or two that set the same key.
    """
    lists = [list(axis) for axis in axes]
    if len({len(axis) for axis in lists}) > 1:
        found = ", ".join(str(len(axis)) for axis in lists)
        raise UserError(f"zipped: expected axes of one length, found {found}")
    return [_joined(parts) for parts in zip(*lists, strict=True)]


def chain(*axes: Iterable[Overrides]) -> list[Overrides]:
    """One axis after the other."""
    return list(itertools.chain(*axes))


def _joined(parts: Sequence[Overrides]) -> Overrides:
    whole: Overrides = {}
    for part in parts:
        if twice := whole.keys() & part.keys():
            raise UserError(f"two axes set {', '.join(sorted(twice))}; join them with chain")
        whole |= part
    return whole

"""TFDS split syntax for sources that are not TFDS (``train[:90%]``), and splits of one table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune_jax.errors import UserError, nearest

_PART = re.compile(r"(?P<name>\w+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def resolve_split(text: str, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Returns ``(split, start, stop)`` index ranges; percentages round to the closest example.

    Args:
      text: such as ``train[10%:]+test``.
      sizes: number of examples of each split.

    Raises:
      UserError: not this syntax, or an unknown split name.
    """
    ranges = []
    for part in text.replace(" ", "").split("+"):
        match = _PART.fullmatch(part)
        if not match:
            raise UserError(
                f"split {text!r}: cannot read {part!r}; expected 'train', 'train[:90%]' or "
                f"'train[100:200]', joined by '+'"
            )
        name = match["name"]
        if name not in sizes:
            raise UserError(f"split {text!r}: unknown split {name!r}.{nearest(name, sizes)}")
        size = sizes[name]

        def bound(value: str | None, default: int, size: int = size) -> int:
            if value is None:
                return default
            percent = value.endswith("%")
            index = round(size * int(value[:-1]) / 100) if percent else int(value)
            return min(max(index + size if index < 0 else index, 0), size)

        start, stop = bound(match["start"], 0), bound(match["stop"], size)
        ranges.append((name, start, max(start, stop)))
    return ranges


def hold_out(labels: Sequence[Any], seed: int) -> dict[str, np.ndarray]:
    """Splits examples 80/10/10 into ``train``, ``validation`` and ``test``, stratified by label.

    Sorted by label (shuffled within each), every ninth and tenth of ten go to validation and test:
    no class, and no range of a numeric label, is off its share by more than one example.

    Args:
      labels: one per example, of one sortable type; all the same for no stratification.
      seed: of the split; never the run's, or runs of several seeds would test on others' training.

    Returns:
      Example numbers i64[n] by split, each in an order shuffled by the seed.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    order = generator.permutation(len(labels))
    order = np.array(sorted(order, key=lambda i: labels[i]), np.int64)
    place = np.arange(len(order)) % 10
    parts = {"train": order[place < 8], "validation": order[place == 8], "test": order[place == 9]}
    return {name: generator.permutation(indices) for name, indices in parts.items()}


def shuffled(count: int, seed: int) -> np.ndarray:
    """Numbers of `count` examples in a fixed random order, so that slices are random samples."""
    return np.random.Generator(np.random.Philox(key=[seed, count])).permutation(count)

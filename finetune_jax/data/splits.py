"""TFDS split syntax (``train[:90%]``) for every source, and random splits of one table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune_jax.errors import UserError, nearest

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""The split by its names, in lower case, as folders, files and values of a column have them."""

_SET = re.compile(r"[ _-]?set$")


def split_named(name: str) -> str | None:
    """The split that a name means, such as ``val`` or ``Training_set``; None for any other name."""
    return SPLIT_NAMES.get(_SET.sub("", name.strip().lower()))


_PART = re.compile(r"(?P<name>\w+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def resolve_split(text: str, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Parses a text such as ``train[10%:]+test``.

    Args:
      text: parts joined by ``+``; a part is the name of a split, with a range of example numbers or
        percentages in brackets. Percentages are rounded to the closest example.
      sizes: number of examples of each split.

    Returns:
      (name of the split, number of the first example, number after the last example) of each part.

    Raises:
      UserError: another syntax, or an unknown split.
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
            number = int(value.removesuffix("%"))
            index = round(size * number / 100) if value.endswith("%") else number
            # A percentage from the end counts from there, also if it is rounded to no example.
            return min(max(index + size if number < 0 else index, 0), size)

        start, stop = bound(match["start"], 0), bound(match["stop"], size)
        ranges.append((name, start, max(start, stop)))
    return ranges


def past_end(text: str, sizes: Mapping[str, int]) -> str:
    """What the ranges of a split ask for beyond its end, as a part of a message; "" for nothing.

    Args:
      text, sizes: as of `resolve_split`.
    """
    for part in text.replace(" ", "").split("+"):
        match = _PART.fullmatch(part)
        if not match or match["name"] not in sizes:
            continue
        size = sizes[match["name"]]
        for value in (match["start"], match["stop"]):
            if value and not value.endswith("%") and abs(int(value)) > size:
                return f"{part!r} asks for more examples than the {size} of {match['name']!r}"
    return ""


def hold_out(labels: Sequence[Any], seed: int) -> dict[str, np.ndarray]:
    """Splits examples 80/10/10 into ``train``, ``validation`` and ``test``, stratified by label.

    Examples are sorted by label, in random order within a label. Of every ten, the ninth goes to
    validation and the tenth to test, so that each class, and each range of a numeric label, has its
    share in every split up to one example.

    Args:
      labels: one label per example, of one sortable type; equal labels for no stratification.
      seed: seed of the split. It must not be the seed of the run: runs of several seeds would be
        tested on training examples of each other.

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
    """Numbers i64[count] of examples in a fixed random order, so that slices are random samples."""
    return np.random.Generator(np.random.Philox(key=[seed, count])).permutation(count)

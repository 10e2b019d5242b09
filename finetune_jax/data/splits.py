"""TFDS split syntax for sources that are not TFDS: ``train[:90%]``, ``train+validation``."""

from __future__ import annotations

import re
from collections.abc import Mapping

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

"""Checks of what a person wrote between a term's brackets."""

from __future__ import annotations

import math
from typing import Any

from finetune_jax.errors import UserError


def positive(name: str, *values: Any) -> None:
    """Raises UserError unless all are finite numbers > 0."""
    for value in values:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not (good and 0 < value < math.inf):
            raise UserError(f"{name}: expected numbers > 0, found {value!r}")


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value`, or a UserError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be a whole number >= {least}, found {value!r}")
    return value

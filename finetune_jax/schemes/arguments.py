"""Checks of the arguments that a user gives to a term."""

from __future__ import annotations

import math
from typing import Any

from finetune_jax.errors import UserError


def positive(name: str, *values: Any) -> None:
    """Raises UserError unless all values are finite numbers > 0."""
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value < math.inf):
            raise UserError(f"{name}: expected a number > 0, found {value!r}")


def positive_int(name: str, value: Any, least: int = 1) -> int:
    """Returns `value`, a whole number >= `least`; UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be a whole number >= {least}, found {value!r}")
    return value


def non_negative_int(name: str, value: Any) -> int:
    """Returns `value`, a whole number >= 0; UserError for anything else."""
    return positive_int(name, value, least=0)

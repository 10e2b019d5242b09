"""A study of schemes from flags: three learning rates for each scheme, and three seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_jax.ablation.axes import Overrides, over
from finetune_jax.ablation.study import Study
from finetune_jax.errors import UserError

FACTORS = (0.3, 1.0, 3.0)
"""Multiples of the rate of a scheme that are tried: about a factor of three up and down."""


def split_schemes(text: str) -> list[str]:
    """The schemes of ``--schemes``: between ``;`` or commas that are outside of brackets.

    Raises:
      UserError: fewer than two schemes, or one twice.
    """
    found, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character in ",;" and depth == 0:
            found.append(text[start:place].strip())
            start = place + 1
    found = [scheme for scheme in [*found, text[start:].strip()] if scheme]
    if len(found) < 2 or len({*found}) < len(found):
        raise UserError(
            f"--schemes: expected different schemes such as 'linear_probe,last_k(1),full', found "
            f"{text!r}"
        )
    return found


def scheme_study(rates: Mapping[str, float]) -> Study:
    """A study of schemes.

    Args:
      rates: by scheme, the learning rate around which its rates are tried.
    """

    def points(row: Overrides) -> list[Overrides]:
        rate = rates[row["scheme"]]
        tried: Sequence[Any] = [float(f"{rate * factor:.3g}") for factor in FACTORS]
        return over("optimizer.learning_rate", tried)

    return Study(rows=over("scheme", rates), tune=points)


def as_text(rates: Mapping[str, float]) -> str:
    """``get_study`` of a config file, see `finetune_jax.config_file.write`."""
    return (
        "\n\ndef get_study():\n"
        "    from finetune_jax.ablation.scheme_study import scheme_study\n\n"
        f"    return scheme_study({dict(rates)!r})\n"
    )

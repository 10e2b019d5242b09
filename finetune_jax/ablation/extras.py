"""What the rows of a table were scored on beside the test split: corruptions, shifts, drift."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune_jax.ablation.outcome import Row
from finetune_jax.ablation.statistics import Estimate, defined, estimate


@dataclasses.dataclass(frozen=True)
class Extra:
    """A further column of a table.

    Attributes:
      name: of the column.
      shifted: whether it is the score on examples unlike the test split's, off the distribution.
      estimates: by name of row.
      not_run: why there is none; empty if there is one.
    """

    name: str
    shifted: bool
    estimates: dict[str, Estimate]
    not_run: str = ""


def extras(rows: Sequence[Row], metric: str) -> list[Extra]:
    """The further columns of a table, as far as any of its rows has them.

    Args:
      rows: of one table.
      metric: of the outcome.
    """
    found = []
    if any(row.others.get("corruptions") for row in rows):
        found.append(Extra(f"{metric}, corrupted", True, _each(rows, "corruptions", _corrupted)))
    shifts = [scores for row in rows for scores in row.others.get("shifts", {}).values()]
    for name in dict.fromkeys(name for scores in shifts for name in scores):
        column = _each(rows, "shifts", functools.partial(_shifted, name=name))
        reasons = [
            scores[name]["not_run"] for scores in shifts if "not_run" in scores.get(name, {})
        ]
        missing = all(math.isnan(x.value) for x in column.values())
        found.append(Extra(f"accuracy, {name}", True, column, reasons[0] if missing else ""))
    if any(row.others.get("drift") for row in rows):
        found.append(Extra("relative feature drift", False, _each(rows, "drift", _drifted)))
    return found


_Scores = Mapping[str, Any]


def _corrupted(found: _Scores) -> _Scores:
    """Mean over the main corruptions; where none of them was run, over the others."""
    value = found.get("mean_corrupted")
    if value is None:
        known = [mean for mean in found.get("mean", {}).values() if defined(mean)]
        value = math.fsum(known) / len(known) if known else None
    return {"score": value}


def _shifted(found: _Scores, name: str) -> _Scores:
    own = found.get(name, {})
    return {f"score{end}": own.get(f"accuracy{end}") for end in ("", "_low", "_high")}


def _drifted(found: _Scores) -> _Scores:
    return {"score": found.get("feature_drift_relative")}


def _each(
    rows: Sequence[Row], name: str, read: Callable[[_Scores], _Scores]
) -> dict[str, Estimate]:
    """Estimates by name of row of the ``score`` that `read` finds, over seeds."""
    return {
        row.line.name: estimate({s: read(x) for s, x in row.others.get(name, {}).items()}, "score")
        for row in rows
    }

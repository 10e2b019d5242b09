"""Extra columns of a table: scores on corruptions and shifted test sets, and drift of features."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune_jax.ablation.outcome import TableRow
from finetune_jax.ablation.report.base import Estimate, ExtraColumn
from finetune_jax.ablation.report.statistics import defined, estimate


def extra_columns(rows: Sequence[TableRow], metric: str) -> list[ExtraColumn]:
    """The extra columns for which at least one row of a table has a record.

    Args:
      rows: rows of one table.
      metric: metric of the outcome.
    """
    columns = []
    if any(row.others.get("corruptions") for row in rows):
        estimates = _estimates(rows, "corruptions", _corrupted)
        columns.append(ExtraColumn(f"{metric}, corrupted", True, estimates))
    shifts = [scores for row in rows for scores in row.others.get("shifts", {}).values()]
    for name in dict.fromkeys(name for scores in shifts for name in scores):
        estimates = _estimates(rows, "shifts", functools.partial(_shifted, name=name))
        reasons = [
            scores[name]["not_run"] for scores in shifts if "not_run" in scores.get(name, {})
        ]
        missing = all(math.isnan(found.value) for found in estimates.values())
        not_run = reasons[0] if missing else ""
        columns.append(ExtraColumn(f"accuracy, {name}", True, estimates, not_run))
    if any(row.others.get("drift") for row in rows):
        estimates = _estimates(rows, "drift", _drifted)
        columns.append(ExtraColumn("relative feature drift", False, estimates))
    return columns


_Scores = Mapping[str, Any]


def _corrupted(record: _Scores) -> _Scores:
    """Mean over the main corruptions; if none of these was run, mean over the other corruptions."""
    value = record.get("mean_corrupted")
    if value is None:
        known = [mean for mean in record.get("mean", {}).values() if defined(mean)]
        value = math.fsum(known) / len(known) if known else None
    return {"score": value}


def _shifted(record: _Scores, name: str) -> _Scores:
    of_shift = record.get(name, {})
    return {f"score{end}": of_shift.get(f"accuracy{end}") for end in ("", "_low", "_high")}


def _drifted(record: _Scores) -> _Scores:
    return {"score": record.get("feature_drift_relative")}


def _estimates(
    rows: Sequence[TableRow], name: str, read: Callable[[_Scores], _Scores]
) -> dict[str, Estimate]:
    """By row name, the estimate of a score over seeds.

    Args:
      rows: rows of one table.
      name: key of `TableRow.others`.
      read: finds ``score``, ``score_low`` and ``score_high`` in the record of one seed.
    """
    return {
        row.spec.name: estimate(
            {seed: read(record) for seed, record in row.others.get(name, {}).items()}, "score"
        )
        for row in rows
    }

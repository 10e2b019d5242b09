"""Extra columns of a table: scores on corruptions and shifted test sets, and drift of features."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune_jax.ablation.outcome import TableRow
from finetune_jax.ablation.report.base import Estimate, ExtraColumn
from finetune_jax.ablation.report.statistics import defined, estimate
from finetune_jax.metrics import names


def extra_columns(rows: Sequence[TableRow], metric: str) -> list[ExtraColumn]:
    """The extra columns for which at least one row of a table has a record.

    Args:
      rows: rows of one table.
      metric: metric of the outcome.
    """
    columns = []
    if any(row.others.get("corruptions") for row in rows):
        estimates = _estimates(rows, "corruptions", _corrupted, metric)
        columns.append(_column(f"{metric}, corrupted", metric, "corrupted", estimates))
    shifts = [scores for row in rows for scores in row.others.get("shifts", {}).values()]
    for name in dict.fromkeys(name for scores in shifts for name in scores):
        read = functools.partial(_shifted, name=name)
        estimates = _estimates(rows, "shifts", read, "accuracy")
        reasons = [
            scores[name]["not_run"] for scores in shifts if "not_run" in scores.get(name, {})
        ]
        missing = all(math.isnan(found.value) for found in estimates.values())
        not_run = reasons[0] if missing else ""
        columns.append(_column(f"accuracy, {name}", "accuracy", name, estimates, not_run))
    if any(row.others.get("drift") for row in rows):
        estimates = _estimates(rows, "drift", _drifted, _DRIFT)
        name = "relative feature drift"
        columns.append(ExtraColumn(name, name, _DRIFT, False, estimates))
    return columns


_DRIFT = "feature_drift_relative"


def _column(
    name: str, score: str, where: str, estimates: dict[str, Estimate], not_run: str = ""
) -> ExtraColumn:
    """A column of a score on examples from another distribution."""
    found = names.named(score)
    heading = f"{found.name}, {where}{', %' * found.percent}"
    return ExtraColumn(name, heading, score, True, estimates, not_run)


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
    ends = {f"score{end}": of_shift.get(f"accuracy{end}") for end in ("", "_low", "_high")}
    return {**ends, "n_scored": of_shift.get("n_scored")}


def _drifted(record: _Scores) -> _Scores:
    return {"score": record.get("feature_drift_relative")}


def _estimates(
    rows: Sequence[TableRow], name: str, read: Callable[[_Scores], _Scores], score: str
) -> dict[str, Estimate]:
    """By row name, the estimate of a score over seeds, from three seeds on with an interval.

    The predictions behind these scores are not kept, so that the intervals cover seeds alone.

    Args:
      rows: rows of one table.
      name: key of `TableRow.others`.
      score: raw name of the score.
      read: finds ``score``, ``score_low`` and ``score_high`` in the record of one seed.
    """
    return {
        row.spec.name: estimate(
            {seed: read(record) for seed, record in row.others.get(name, {}).items()},
            "score",
            names.named(score).bounds,
        )
        for row in rows
    }

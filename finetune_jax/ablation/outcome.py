"""What an ablation found for each row: the input of every table, figure and test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.search import Trial
from finetune_jax.ablation.study import Line


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of a row trains and takes.

    Attributes:
      trainable: scalars that any phase trains.
      total: scalars, deltas included.
      step_flops: of the compiled step that ran, behind the cached prefix where there is one.
      train_flops: of all steps.
      peak_bytes: arguments and temporaries of the compiled step.
      optimizer_bytes: of the optimizer's state.
      checkpoint_bytes: of the training state.
      seconds: of the run by the wall clock, beside whatever ran with it; for orientation.
    """

    trainable: int
    total: int
    step_flops: float
    train_flops: float
    peak_bytes: int
    optimizer_bytes: int
    checkpoint_bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: tuned on validation, scored over seeds.

    Attributes:
      line: its names and overrides.
      point: hyper-parameters chosen on validation; None if every arm failed.
      edges: keys in which the point is at an end of what was tried.
      trials: all that were tried.
      budget: runs of whole length that tuning took, times its seeds.
      validation: of the chosen point by seed, the task's scores.
      test: likewise on the test split, each with ``n_scored``.
      others: by name such as ``corruptions``, ``shifts`` or ``drift``: by seed, as evaluate prints.
      predictions: by seed, file of the test predictions.
      cost: of the run with the first seed; None if there is no run.
      errors: of arms that failed, by seed, at the chosen point.
    """

    line: Line
    point: Overrides | None
    edges: tuple[str, ...]
    trials: tuple[Trial, ...]
    budget: float
    validation: dict[int, dict[str, Any]]
    test: dict[int, dict[str, Any]]
    others: dict[str, dict[int, dict[str, Any]]]
    predictions: dict[int, Path]
    cost: Cost | None
    errors: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All rows of a study.

    Attributes:
      rows: in the study's order; those with one `Line.table` are compared with each other.
      metric: that rows are tuned on and compared by, such as ``accuracy``.
      better: ``max`` or ``min``.
      reference: label of the row to compare with in every table that has it; empty: the first.
      seeds: of the scored arms.
      tuned_over: number of seeds of each trial.
      about: for people: ``config`` (path), ``config_hash``, ``command``, ``versions``, ``seconds``.
    """

    rows: tuple[Row, ...]
    metric: str
    better: str
    reference: str
    seeds: tuple[int, ...]
    tuned_over: int
    about: dict[str, Any]

    @property
    def tables(self) -> dict[str, tuple[Row, ...]]:
        """Rows by table, in order."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.line.table, []).append(row)
        return {name: tuple(rows) for name, rows in found.items()}

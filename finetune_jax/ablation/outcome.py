"""The outcome of an ablation: the scores and costs of each row, from which the report is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.search.base import Trial
from finetune_jax.ablation.study import RowSpec


@dataclasses.dataclass(frozen=True)
class RunCost:
    """The number of scalars that one run of a row trains, and the resources of the run.

    Attributes:
      trainable: number of scalars that any phase trains.
      total: number of all scalars, scalars of deltas included.
      step_flops: FLOPs of the compiled training step; without the frozen prefix if it is cached.
      train_flops: FLOPs of all training steps.
      peak_bytes: bytes of the arguments and temporaries of the compiled step.
      optimizer_bytes: bytes of the optimizer state.
      checkpoint_bytes: bytes of the training state.
      seconds: wall-clock time of the run, for orientation only: other runs may have run at the same
        time.
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
class TableRow:
    """A row of a table: tuned on validation, scored with several seeds.

    Attributes:
      spec: names and overrides of the row.
      point: hyper-parameters chosen on validation; None if every arm failed.
      edges: keys in which the chosen value is the smallest or the largest value tried.
      trials: all trials of the search.
      budget: cost of tuning in runs of full length, over all tuning seeds.
      validation: by seed, the task's scores of the chosen point on the validation split.
      test: by seed, the task's scores of the chosen point on the test split, with ``n_scored``.
      others: further scores by name (``corruptions``, ``shifts`` or ``drift``) and by seed, in the
        format of the evaluate command.
      predictions: by seed, path of the file of test predictions.
      cost: cost of the run with the first seed; None if no run was finished.
      errors: by seed, error message of each failed arm of the chosen point.
    """

    spec: RowSpec
    point: Overrides | None
    edges: tuple[str, ...]
    trials: tuple[Trial, ...]
    budget: float
    validation: dict[int, dict[str, Any]]
    test: dict[int, dict[str, Any]]
    others: dict[str, dict[int, dict[str, Any]]]
    predictions: dict[int, Path]
    cost: RunCost | None
    errors: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All rows of a study.

    Attributes:
      rows: in the order of the study. Rows with the same `RowSpec.table` are compared.
      metric: metric by which rows are tuned and compared, such as ``accuracy``.
      better: ``max`` or ``min``.
      reference: label of the row that the other rows of its table are compared with; if empty, or
        if a table has no such row, the first row of the table.
      seeds: seeds of the scored arms.
      tuning_seeds: number of seeds of each trial.
      provenance: ``config`` (path), ``config_hash``, ``command``, ``versions``, ``seconds`` and
        ``accepted`` (lines about changed data that the user accepted), all optional.
    """

    rows: tuple[TableRow, ...]
    metric: str
    better: str
    reference: str
    seeds: tuple[int, ...]
    tuning_seeds: int
    provenance: dict[str, Any]

    @property
    def tables(self) -> dict[str, tuple[TableRow, ...]]:
        """Rows by table, in order."""
        found: dict[str, list[TableRow]] = {}
        for row in self.rows:
            found.setdefault(row.spec.table, []).append(row)
        return {name: tuple(rows) for name, rows in found.items()}

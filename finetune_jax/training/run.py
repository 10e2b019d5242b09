"""A run in progress: the values that the phases of a run share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.batches import TrainBatches
from finetune_jax.data.examples import ActivationExamples, Examples
from finetune_jax.evaluation.scores import evaluate, forward_all
from finetune_jax.identity import MadeOf
from finetune_jax.locks import FolderLock
from finetune_jax.mesh import local_rows, put_batch
from finetune_jax.metrics.probes import (
    TRAINING_EXAMPLES,
    parse_probes,
    probe_scores,
    sample,
)
from finetune_jax.schemes import Plan
from finetune_jax.setup import Setup
from finetune_jax.training.checkpoints import Checkpoints
from finetune_jax.training.cost import StepCost
from finetune_jax.training.metrics_writer import MetricsWriter
from finetune_jax.training.nonfinite import Watch
from finetune_jax.training.pace import Pace, log_interval
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.prefix_cache import cache_prefix
from finetune_jax.training.shared import SharedCaches
from finetune_jax.training.state import State


@dataclasses.dataclass
class Run:
    """A run in progress.

    Attributes:
      setup: resolved config, with the teacher and with the task fitted to the data.
      workdir: run folder.
      caches: caches that the run shares with other arms.
      splits: decoded examples by split name.
      left_out: names of bad images by split name, for splits with bad images.
      starts: first step of each phase.
      lengths: number of steps of each phase.
      manifest: manifest of the weight file, as JSON.
      variables: variables of both halves at the start of the current phase.
      modified: paths of leaves that no longer hold the values of the weight file, with ``params/``
        or ``batch_stats/`` in front.
      anchor: values by leaf path that L2-SP pulls towards: params that came from the weight file,
        and start values of deltas; empty when L2-SP is off.
      checkpoints: checkpoints of the run.
      writer: writer of the run's metrics.
      made_of: what the run is made of, see `finetune_jax.identity`.
      accepted: differences of `made_of` from that of an earlier part of the run, which the user
        accepted, and changes of the run's length: ``step`` and ``changes``, a list of lines.
      lock: lock of the run folder; None on processes that are not the primary.
      previous: last trained phase and the state at its end; None before the first phase and after a
        solved phase.
      audits: audit counts of each phase.
      solver_reports: reports of the solved phases.
      costs: cost of a step of each trained phase of this process.
      train_flops: FLOPs of all steps of each trained phase that has ended.
      watch: record of the steps that were not finite.
    """

    setup: Setup
    workdir: Path
    caches: SharedCaches
    splits: Mapping[str, Examples]
    left_out: dict[str, list[str]]
    starts: list[int]
    lengths: list[int]
    manifest: dict[str, Any]
    variables: dict[str, Any]
    modified: set[str]
    anchor: dict[str, Any]
    checkpoints: Checkpoints
    writer: MetricsWriter
    made_of: MadeOf
    accepted: list[dict[str, Any]]
    lock: FolderLock | None = None
    previous: tuple[PhaseRun, State] | None = None
    audits: list[dict[str, int]] = dataclasses.field(default_factory=list)
    solver_reports: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    costs: list[StepCost] = dataclasses.field(default_factory=list)
    train_flops: list[float] = dataclasses.field(default_factory=list)
    watch: Watch = dataclasses.field(default_factory=Watch)

    @property
    def total(self) -> int:
        """Number of steps of the whole run."""
        return sum(self.lengths)

    @property
    def last_phase(self) -> int:
        """Number of the last phase."""
        return len(self.setup.phases) - 1

    @property
    def log_every(self) -> int:
        """Number of steps between two rows of training in ``metrics.jsonl``."""
        return log_interval(self.setup.config.log.every_steps, self.total)

    def epoch(self, step: int) -> float:
        """Number of epochs of training after a step."""
        return step * self.setup.config.train.batch_size / len(self.splits["train"])

    def pace(self, start: int) -> Pace:
        """Returns the progress of the run from a step on, before its next step."""
        config, sizes = self.setup.config, {name: len(x) for name, x in self.splits.items()}
        validation = sizes.get("validation", 0)
        return Pace(
            start,
            self.total,
            config.train.batch_size,
            stops=[s + n for s, n in zip(self.starts, self.lengths, strict=True) if n],
            every=self.evaluate_every,
            validation=validation,
            scored=validation + sizes.get("test", 0),
        )

    @property
    def evaluate_every(self) -> int:
        """Number of steps between two evaluations."""
        config = self.setup.config
        steps_per_epoch = len(self.splits["train"]) / config.train.batch_size
        return max(1, round(config.eval.every_epochs * steps_per_epoch))

    def phase(self, index: int) -> PhaseRun:
        """Returns a phase at its place in the run."""
        return PhaseRun(self.setup, index, self.starts[index], self.lengths[index])

    def anchor_deltas(self, plan: Plan) -> None:
        """Adds the start values of a plan's deltas to the values that L2-SP pulls towards."""
        settings = self.setup.config.optimizer
        if not (settings.l2_sp or settings.l2_sp_head):
            return
        leaves = tree.flatten(self.variables["params"])
        for leaf in plan.leaves:
            if leaf.delta:
                self.anchor.setdefault(leaf.path, leaves[leaf.path])

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts a host batch on the mesh."""
        return put_batch(batch, self.setup.mesh)

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the rows of a global batch that this process reads."""
        return local_rows(self.setup.mesh, batch_size)

    def train_batches(self, examples: Examples) -> TrainBatches:
        """Returns batches of some examples in the order of this run."""
        config = self.setup.config
        return TrainBatches(
            examples,
            self.setup.encode,
            config.train.batch_size,
            config.seed,
            self.rows(config.train.batch_size),
            config.data.workers,
        )

    def cached_split(self, phase: PhaseRun, variables: dict[str, Any], split: str) -> Examples:
        """Returns a split as activations after the frozen prefix, where they can be cached.

        Args:
          phase: phase whose prefix is computed.
          variables: variables of both halves.
          split: name of the split.
        """
        return cache_prefix(
            phase,
            variables,
            self.splits[split],
            self.setup.config.data[split],
            self.place,
            self.caches,
            training=split == "train",
        )

    def score(
        self, phase: PhaseRun, variables: dict[str, Any], examples: Examples
    ) -> dict[str, Any]:
        """Scores some examples.

        Args:
          phase: phase whose model is scored.
          variables: variables of both halves.
          examples: images or texts, or activations after the prefix of `phase`.
        """
        config = self.setup.config
        size, workers = config.eval.batch_size, config.data.workers
        cached = isinstance(examples, ActivationExamples)
        step = self.caches.eval_steps.get(
            (phase.index, cached, jax.tree.structure(variables)),
            lambda: phase.compile_eval_step(size, variables, cached=cached),
        )
        task, encode = self.setup.task, self.setup.encode
        return evaluate(
            task, step, variables, examples, encode,
            batch_size=size, place=self.place, workers=workers, rows=self.rows(size),
        )  # fmt: skip

    def probe(
        self, phase: PhaseRun, variables: dict[str, Any], train: Examples, validation: Examples
    ) -> dict[str, float]:
        """Returns the validation accuracy of each probe of ``eval.probes``.

        Args:
          phase: phase whose model gives the features.
          variables: variables of both halves.
          train: examples that the probes are fitted on, as for `score`.
          validation: examples that the probes are scored on, as for `score`.
        """
        setup = self.setup
        probes = parse_probes(setup.config.eval.probes)
        if not probes:
            return {}
        step = self.caches.feature_steps.get(phase.index, phase.compile_features)
        size = setup.config.eval.batch_size

        def features(examples: Examples, limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
            return forward_all(
                lambda batch: step(variables, batch),
                examples,
                setup.encode,
                batch_size=size,
                place=self.place,
                indices=sample(len(examples), limit),
                rows=self.rows(size),
            )

        return probe_scores(probes, features(train, TRAINING_EXAMPLES), features(validation))

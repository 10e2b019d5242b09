"""A run in progress: what its phases share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.batches import TrainBatches
from finetune_jax.data.sources import ActivationExamples, Examples
from finetune_jax.evaluation.scores import evaluate, forward_all
from finetune_jax.mesh import local_rows, put_batch
from finetune_jax.metrics.probes import (
    TRAINING_EXAMPLES,
    parse_probes,
    probe_scores,
    sample,
)
from finetune_jax.schemes import Plan
from finetune_jax.setup import Setup
from finetune_jax.training import state as state_lib
from finetune_jax.training.checkpoints import Checkpoints
from finetune_jax.training.metrics_writer import MetricsWriter
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.prefix_cache import cache_prefix
from finetune_jax.training.shared import Shared


@dataclasses.dataclass
class Run:
    """A run in progress.

    Attributes:
      setup: resolved config.
      workdir: run folder.
      shared: what this run has in common with other arms.
      splits: decoded examples by split name.
      starts: first step of each phase.
      lengths: steps of each phase.
      variables: whole variables at the start of the current phase.
      settled: paths, with their collection, of leaves that are no longer the weight file's.
      anchor: what L2-SP pulls towards, flat: params that came from the weight file, and deltas as
        they started; empty when it is off.
      checkpoints: of the run.
      writer: of its metrics.
      state: of the last trained phase, with its `PhaseRun`.
      audits: counts of each phase.
      probes: reports of solved phases.
      costs: compiled figures of each trained phase of this process.
      train_flops: of all steps of each trained phase that has ended.
    """

    setup: Setup
    workdir: Path
    shared: Shared
    splits: dict[str, Examples]
    starts: list[int]
    lengths: list[int]
    variables: dict[str, Any]
    settled: set[str]
    anchor: dict[str, Any]
    checkpoints: Checkpoints
    writer: MetricsWriter
    state: tuple[PhaseRun, state_lib.State] | None = None
    audits: list[dict[str, int]] = dataclasses.field(default_factory=list)
    probes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    costs: list[Any] = dataclasses.field(default_factory=list)
    train_flops: list[float] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return sum(self.lengths)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts a host batch on the mesh."""
        return put_batch(batch, self.setup.mesh)

    def anchor_deltas(self, plan: Plan) -> None:
        """Makes L2-SP pull the deltas of a plan towards the values they start from."""
        settings = self.setup.config.optimizer
        if not (settings.l2_sp or settings.l2_sp_head):
            return
        leaves = tree.flatten(self.variables["params"])
        for leaf in plan.leaves:
            if leaf.delta:
                self.anchor.setdefault(leaf.path, leaves[leaf.path])

    def phase_run(self, index: int) -> PhaseRun:
        """A phase at its place."""
        return PhaseRun(self.setup, index, self.starts[index], self.lengths[index])

    def train_batches(self, examples: Examples) -> TrainBatches:
        """The run's order over some examples."""
        config = self.setup.config
        return TrainBatches(
            examples,
            self.setup.encode,
            config.train.batch_size,
            config.seed,
            self.rows(config.train.batch_size),
            config.data.workers,
        )

    def rows(self, batch_size: int) -> np.ndarray:
        """Rows of a global batch that this process reads."""
        return local_rows(self.setup.mesh, batch_size)

    def behind_prefix(self, run: PhaseRun, variables: dict[str, Any], name: str) -> Examples:
        """A split as activations after the frozen prefix of a phase where that can be cached."""
        return cache_prefix(
            run,
            variables,
            self.splits[name],
            self.setup.config.data[name],
            self.place,
            self.shared.once,
            training=name == "train",
        )

    def score(self, run: PhaseRun, variables: dict[str, Any], examples: Examples) -> dict[str, Any]:
        """Scores of `examples`, images or activations after the prefix of `run`."""
        config = self.setup.config
        size, workers = config.eval.batch_size, config.data.workers
        cached = isinstance(examples, ActivationExamples)
        step = self.shared.once(
            ("evaluate", run.index, cached),
            lambda: run.compile_eval_step(size, variables, cached=cached),
        )
        task, encode = self.setup.task, self.setup.encode
        return evaluate(
            task, step, variables, examples, encode,
            batch_size=size, place=self.place, workers=workers, rows=self.rows(size),
        )  # fmt: skip

    def probe(
        self, run: PhaseRun, variables: dict[str, Any], train: Examples, validation: Examples
    ) -> dict[str, float]:
        """Validation accuracy of the probes of ``eval.probes``; examples as for `score`."""
        setup = self.setup
        probes = parse_probes(setup.config.eval.probes)
        if not probes:
            return {}
        behind = run.plan.stages[len(run.plan.prefix)]

        def features(variables: dict[str, Any], batch: dict[str, Any]) -> Any:
            if "activation" in batch:
                x, start = batch["activation"], behind
            else:
                x, start = setup.preprocess.device(batch), None
            return run.model.apply(variables, x, start=start, stop="head"), batch["label"]

        step = self.shared.once(("probe", run.index), lambda: jax.jit(features))
        size = setup.config.eval.batch_size

        def of(examples: Examples, limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
            return forward_all(
                lambda batch: step(variables, batch),
                examples,
                setup.encode,
                batch_size=size,
                place=self.place,
                indices=sample(len(examples), limit),
                rows=self.rows(size),
            )

        return probe_scores(probes, of(train, TRAINING_EXAMPLES), of(validation))

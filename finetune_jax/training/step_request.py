"""A train step that a run asks its driver to compute."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import Frozen, State


@dataclasses.dataclass(frozen=True)
class StepRequest:
    """The next train step of a run.

    `loop.steps` yields requests and is sent the results. The driver computes each step by itself
    (`loop.train`), or computes the steps of several arms as one program (`arms.run_arms`).

    Attributes:
      phase: phase of the run that the step belongs to.
      cached: whether the batch holds activations after the frozen prefix instead of inputs.
      step: train step compiled for a single run; the step donates the state.
      state: state before the step.
      frozen: frozen half, which the step only reads.
      batch: global batch on the host, or the rows of the batch that this process reads.
      number: number of the step within the run, from 1.
      batch_number: number of the batch in the order of the run, from 1; above `number` once the run
        has left out batches (``train.on_nan``).
    """

    phase: PhaseRun
    cached: bool
    step: jax.stages.Compiled
    state: State
    frozen: Frozen
    batch: dict[str, np.ndarray]
    number: int
    batch_number: int

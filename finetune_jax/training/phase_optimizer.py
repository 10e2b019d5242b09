"""The optimizer of one phase: its settings, learning rates and gradient transformation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections
import optax

from finetune_jax.schemes import Phase, Plan
from finetune_jax.training.optimizer import (
    Rates,
    group_label,
    hyper_parameters,
    make_optimizer,
    make_rates,
    migrate,
)


@dataclasses.dataclass(frozen=True)
class PhaseOptimizer:
    """How one phase turns gradients into updates.

    Attributes:
      settings: ``config.optimizer``, with the values that the phase sets in place of the run's.
      index: number of the phase.
      plan: plan of the phase.
      joined: number of the phase since which each trainable leaf has trained without a break, by
        leaf path. A reset of the optimizer state counts as a break.
      rates: learning rate of each leaf by step.
      transformation: gradient transformation of the trainable half (`make_optimizer`).
      label_smoothing: label smoothing of the loss, in [0, 1).
    """

    settings: ml_collections.ConfigDict
    index: int
    plan: Plan
    joined: dict[str, int]
    rates: Rates
    transformation: optax.GradientTransformationExtraArgs
    label_smoothing: float

    def hyper(self) -> dict[str, Any]:
        """Returns the start value of `State.hyper`, see `hyper_parameters`."""
        return hyper_parameters(self.settings, self.plan, self.label_smoothing)

    def carry(
        self, before: PhaseOptimizer, old: optax.OptState, new: optax.OptState
    ) -> optax.OptState:
        """Returns `new` with the moments and step counts of the leaves that train on.

        Args:
          before: optimizer of the phase before.
          old: optimizer state at the end of the phase before.
          new: fresh optimizer state of this phase.
        """
        survivors = {path for path, phase in self.joined.items() if phase < self.index}
        labels = {
            leaf.path: group_label(leaf.group, before.joined[leaf.path])
            for leaf in before.plan.leaves
            if leaf.path in survivors
        }
        return migrate(old, new, labels)


def make_phase_optimizer(
    config: ml_collections.ConfigDict, phases: Sequence[Phase], index: int, start: int, steps: int
) -> PhaseOptimizer:
    """Returns the optimizer of one phase.

    Args:
      config: config of the run.
      phases: all phases of the run.
      index: number of the phase.
      start: step of the run at which the phase starts.
      steps: number of steps of the phase.
    """
    phase = phases[index]
    settings = copy.deepcopy(config.optimizer)
    changes = {"name": phase.optimizer, "weight_decay": phase.decay, "clip_norm": phase.clip}
    settings.update({key: value for key, value in changes.items() if value is not None})
    joined = _joined(phases[: index + 1])
    rates = make_rates(settings, phase, start, max(steps, 1))
    return PhaseOptimizer(
        settings,
        index,
        phase.plan,
        joined,
        rates,
        make_optimizer(settings, rates, joined),
        config.task.label_smoothing,
    )


def _joined(phases: Sequence[Phase]) -> dict[str, int]:
    """`PhaseOptimizer.joined` of the last of some phases."""
    joined: dict[str, int] = {}
    for number, phase in enumerate(phases):
        before = {} if phase.reset or phase.solve else joined
        joined = {path: before.get(path, number) for path in phase.plan.trainable}
        if phase.solve:
            joined = {}
    return joined

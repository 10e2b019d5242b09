"""The cost of a plan, read off the compiled train step before any step runs and without data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from finetune_jax import tree
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import State


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Compiled figures of one train step over the whole mesh.

    Attributes:
      flops: floating-point operations of a step, on all devices together.
      temp_bytes: bytes of temporary buffers on one device.
      argument_bytes: bytes of state, frozen leaves and batch on one device.
      optimizer_bytes: bytes of one copy of the optimizer state.
      checkpoint_bytes: bytes of a checkpoint of the state.
    """

    flops: float
    temp_bytes: int
    argument_bytes: int
    optimizer_bytes: int
    checkpoint_bytes: int


def flops(compiled: jax.stages.Compiled) -> float:
    """Returns the FLOPs of a compiled function on all its devices (XLA counts one device)."""
    analysis = compiled.cost_analysis()
    assert analysis is not None
    devices = {d for s in jax.tree.leaves(compiled.input_shardings[0]) for d in s.device_set}
    return float(analysis["flops"]) * max(len(devices), 1)


def measure(compiled: jax.stages.Compiled, state: State, accumulate: int = 1) -> StepCost:
    """Reads the cost of a compiled train step.

    Args:
      compiled: train step.
      state: state of the step, concrete or abstract.
      accumulate: number of micro-batches of the step. XLA counts the body of their loop once, so
        the count is multiplied by this number; the few operations per leaf of the optimizer are
        then counted too often.
    """
    memory = compiled.memory_analysis()
    assert memory is not None
    saved = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    del saved["key"], saved["hyper"]
    return StepCost(
        flops=flops(compiled) * accumulate,
        temp_bytes=int(memory.temp_size_in_bytes),
        argument_bytes=int(memory.argument_size_in_bytes),
        optimizer_bytes=tree.nbytes(state.opt_state),
        checkpoint_bytes=tree.nbytes(saved),
    )


def phase_figures(phase: PhaseRun) -> dict[str, Any]:
    """Returns the sizes and the cost of one phase; a solved phase has no train step and costs 0.

    Returns:
      ``scheme``, ``plan_hash``, ``trainable_params``, ``frozen_params``, ``prefix_stages``;
      ``frozen_bytes`` as stored and ``frozen_bytes_float32``; and the attributes of `StepCost`,
      with ``flops`` under the name ``flops_step``.
    """
    trainable, frozen = tree.split(phase.abstract["params"], phase.plan.trainable)
    state, stored = phase.abstract_state()
    if phase.definition.solve:
        cost = StepCost(0.0, 0, 0, 0, 0)
    else:
        accumulate = phase.setup.config.train.accumulate
        cost = measure(phase.compile_train_step(), state, accumulate)
    costs = dataclasses.asdict(cost)
    return {
        "scheme": phase.plan.scheme,
        "plan_hash": phase.plan.hash,
        "trainable_params": tree.size(trainable),
        "frozen_params": tree.size(frozen),
        "frozen_bytes": tree.nbytes(stored.params),
        "frozen_bytes_float32": tree.nbytes(frozen),
        "prefix_stages": len(phase.plan.prefix),
        "flops_step": costs.pop("flops"),
        **costs,
    }

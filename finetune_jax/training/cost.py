"""What a plan costs, read off the compiled step before any step runs and without any data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from finetune_jax import tree
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import State


@dataclasses.dataclass(frozen=True)
class Cost:
    """Compiled figures of one train step over the whole mesh.

    Attributes:
      flops: floating-point operations of a step, all devices together.
      temp_bytes: temporary buffers of one device.
      argument_bytes: state, frozen leaves and batch on one device.
      optimizer_bytes: optimizer state, once.
      checkpoint_bytes: a checkpoint of the state.
    """

    flops: float
    temp_bytes: int
    argument_bytes: int
    optimizer_bytes: int
    checkpoint_bytes: int


def flops(compiled: Any) -> float:
    """FLOPs of a compiled function over all its devices (XLA counts one device)."""
    analysis = compiled.cost_analysis()
    devices = {d for s in jax.tree.leaves(compiled.input_shardings[0]) for d in s.device_set}
    return float(analysis["flops"]) * max(len(devices), 1)


def measure(compiled: Any, state: State, accumulate: int = 1) -> Cost:
    """Reads the figures of a compiled train step.

    Args:
      compiled: the step.
      state: its state; may be abstract.
      accumulate: micro-batches of the step. XLA counts the body of their loop once, so its count is
        multiplied; the few operations per leaf of the optimizer are then counted too often.
    """
    memory = compiled.memory_analysis()
    saved = dataclasses.replace(state, key=None, hyper=None)
    return Cost(
        flops=flops(compiled) * accumulate,
        temp_bytes=int(memory.temp_size_in_bytes),
        argument_bytes=int(memory.argument_size_in_bytes),
        optimizer_bytes=tree.nbytes(state.opt_state),
        checkpoint_bytes=tree.nbytes(saved),
    )


def phase_figures(run: PhaseRun) -> dict[str, Any]:
    """What one phase trains and costs; a solved one compiles no step and costs none.

    Returns:
      ``scheme``, ``plan_hash``, ``trainable_params``, ``frozen_params``, ``prefix_stages`` and the
      attributes of `Cost` with ``flops`` as ``flops_step``.
    """
    trainable, frozen = tree.split(run.abstract["params"], run.plan.trainable)
    if run.phase.solve:
        cost = Cost(0.0, 0, 0, 0, 0)
    else:
        accumulate = run.setup.config.train.accumulate
        cost = measure(run.compile_train_step(), run.abstract_state()[0], accumulate)
    costs = dataclasses.asdict(cost)
    return {
        "scheme": run.plan.scheme,
        "plan_hash": run.plan.hash,
        "trainable_params": tree.size(trainable),
        "frozen_params": tree.size(frozen),
        "prefix_stages": len(run.plan.prefix),
        "flops_step": costs.pop("flops"),
        **costs,
    }

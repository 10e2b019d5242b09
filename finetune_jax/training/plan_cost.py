"""What every phase of a config costs beside full fine-tuning, before any step and without data."""

from __future__ import annotations

from typing import Any

from finetune_jax.setup import Setup, open_setup
from finetune_jax.training.cost import flops, phase_figures
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.teacher import with_teacher

_COSTS = ("flops", "temp", "argument", "optimizer", "checkpoint")
"""Beginnings of the names of figures that full fine-tuning is compared by."""


def plan_figures(setup: Setup) -> dict[str, Any]:
    """Compiles the steps of a setup and reads their figures; no step runs.

    Returns:
      The figures. They describe the last phase: ``scheme``, ``plan_hash``,
      ``trainable_params``, ``frozen_params``, ``prefix_stages``; ``flops_step`` and
      ``flops_forward``, operations per batch; ``temp_bytes`` and ``argument_bytes`` per device;
      ``optimizer_bytes`` and ``checkpoint_bytes``; and each cost of full fine-tuning, with the
      suffix ``_full``. ``phases`` lists the same figures for every phase.

    Raises:
      UserError: see `open_setup`.
    """
    setup, config = with_teacher(setup), setup.config
    reference = config.copy_and_resolve_references()
    with reference.ignore_type():
        reference.scheme = "full"
    full = phase_figures(PhaseRun(with_teacher(open_setup(reference))))
    last = PhaseRun(setup, len(setup.phases) - 1)
    flops_forward = flops(last.compile_eval_step(config.train.batch_size))
    phases = [
        {**phase_figures(PhaseRun(setup, index)), "flops_forward": flops_forward}
        | {f"{name}_full": value for name, value in full.items() if name.startswith(_COSTS)}
        for index in range(len(setup.phases))
    ]
    return {**phases[-1], "scheme": setup.scheme, "phases": phases}

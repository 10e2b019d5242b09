"""How far the gradients over weights of few bits are from those over float32 weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.base_variables import load_variables
from finetune_jax.data.batches import TrainBatches
from finetune_jax.errors import UserError
from finetune_jax.mesh import put_batch
from finetune_jax.quantization import FORMATS
from finetune_jax.setup import Setup
from finetune_jax.training.importance import make_gradient
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.teacher import with_teacher


def check_gradients(setup: Setup) -> list[dict[str, Any]]:
    """Compares the gradients of one batch over the weights of few bits with those over float32.

    The gradients are those of all trainable leaves of a phase at the start of the run, without
    augmentation.

    Args:
      setup: setup of the run.

    Returns:
      A dict for each phase that computes with weights of few bits: ``phase``, its number from 1;
      ``examples``, the size of the batch; ``cosine`` of the angle between both gradients; and
      ``norm_ratio``, the length of the gradient over that of the gradient over float32 weights.

    Raises:
      UserError: no phase computes with weights of few bits, or the weights or data cannot be read.
    """
    setup = with_teacher(setup)
    config = setup.config.copy_and_resolve_references()
    config.model.frozen_dtype = "float32"
    phases = tuple(dataclasses.replace(phase, quantize=None) for phase in setup.phases)
    exact = dataclasses.replace(setup, config=config, phases=phases)
    frozen = setup.config.model.frozen_dtype in FORMATS
    chosen = [i for i, x in enumerate(setup.phases) if not x.solve and (frozen or x.quantize)]
    if not chosen:
        raise UserError(
            "--check_gradients: no phase of the run computes with weights of few bits; expected "
            "model.frozen_dtype, such as int8, or a scheme with phase(quantize='int8')"
        )
    variables, _ = load_variables(setup)
    size = setup.config.train.batch_size
    examples = setup.source.read(setup.config.data.train)
    source = TrainBatches(examples, setup.encode, size, setup.config.seed)
    batch = put_batch(source.batch(0), setup.mesh)
    found = []
    for index in chosen:
        ours, theirs = (_gradient(PhaseRun(s, index), variables, batch) for s in (setup, exact))
        lengths = [float(jnp.linalg.norm(g)) for g in (ours, theirs)]
        if not min(lengths) > 0:
            raise UserError(f"--check_gradients: the gradient of phase {index + 1} is 0")
        found.append(
            {
                "phase": index + 1,
                "examples": size,
                "cosine": float(ours @ theirs) / (lengths[0] * lengths[1]),
                "norm_ratio": lengths[0] / lengths[1],
            }
        )
    return found


def _gradient(phase: PhaseRun, variables: dict[str, Any], batch: Any) -> jax.Array:
    """The gradient of all trainable leaves, as one vector."""
    params = phase.plan.add_deltas(variables["params"], jax.random.key(phase.setup.config.seed))
    state, frozen = phase.create_state({**variables, "params": params})
    gradients, _ = make_gradient(phase)(state, frozen, batch)
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])

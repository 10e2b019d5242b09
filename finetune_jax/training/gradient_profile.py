"""Proposals of what to train, from the gradients of a few batches, with the costs of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict
from scipy.optimize import minimize

from finetune_jax.base_variables import load_variables
from finetune_jax.data.batches import TrainBatches, gather
from finetune_jax.evaluation.step import make_forward
from finetune_jax.mesh import put_batch
from finetune_jax.progress import say
from finetune_jax.setup import Setup, open_setup
from finetune_jax.training import head_solver, importance
from finetune_jax.training.cost import phase_figures
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.preparing import with_fitted_task
from finetune_jax.training.teacher import with_teacher

_HEAD_IMAGES = 1024
"""Training images at most on which a new head is solved."""

_DECAY = 1e-4  # of the squared norm of a head that L-BFGS fits


def profile(config: ConfigDict, batches: int = 5) -> dict[str, Any]:
    """Measures gradients, and proposes schemes with their costs; trains nothing.

    A new head is first solved on frozen features, because the gradients of the other stages depend
    on the head and carry no information while the head is random.

    Args:
      config: names the model, weights and training data; its scheme is not used.
      batches: number of batches, of ``train.batch_size`` training images each.

    Returns:
      ``stages``: rows of `importance.by_stage`; ``proposals``: ``scheme``, ``reason`` and the
      figures of `cost.phase_figures`.
    """
    phase = _phase(config, "full")
    examples = phase.setup.source.read(config.data.train)
    phase = dataclasses.replace(phase, setup=with_fitted_task(phase.setup, examples))
    setup = phase.setup
    variables, manifest = load_variables(setup)
    fresh = {r["leaf"] for r in manifest["rows"] if r["decision"] == "reinitialised"}
    source = TrainBatches(examples, setup.encode, config.train.batch_size, config.seed)
    if any(leaf.startswith("params/head/") for leaf in fresh) and not setup.task.random_inputs:
        say("solving the new head on frozen features")
        solve = _with_solved_head if setup.task.name == "classification" else _with_fitted_head
        variables = solve(setup, variables, source)
    state, frozen = phase.create_state(variables)
    say(f"measuring gradients of {batches} batches")
    values = importance.measure(
        phase, state, frozen, (put_batch(source.batch(i), setup.mesh) for i in range(batches))
    )
    sizes = {leaf.path: math.prod(leaf.shape) for leaf in phase.plan.leaves}
    rows = importance.by_stage(values, sizes, phase.plan.stages)
    proposals = []
    for scheme, reason in importance.propose(rows):
        say(f"compiling {scheme}")
        proposals.append(
            {**phase_figures(_phase(config, scheme)), "scheme": scheme, "reason": reason}
        )
    return {"stages": rows, "proposals": proposals}


def _phase(config: ConfigDict, scheme: str) -> PhaseRun:
    """The last phase of the config under another scheme."""
    changed = config.copy_and_resolve_references()
    with changed.ignore_type():
        changed.scheme = scheme
    changed.artifact.merge = False
    if scheme == "full":
        changed.batch_norm = "frozen_all"  # the statistics that the weights were trained with
    setup = with_teacher(open_setup(changed))
    return PhaseRun(setup, len(setup.phases) - 1)


def _with_solved_head(
    setup: Setup, variables: dict[str, Any], source: TrainBatches
) -> dict[str, Any]:
    """The variables with a head by ridge regression on features of some training images.

    The strength of the ridge is chosen on a quarter of the images.
    """
    features, targets = [], []
    for x, batch in _head_batches(setup, variables, source):
        features.append(x)
        targets.append(batch["label"])
    x, y = np.concatenate(features), np.concatenate(targets)
    cut = max(1, 3 * len(x) // 4)
    head, _ = head_solver.solve(
        "ridge", (x[:cut], y[:cut]), (x[cut:], y[cut:]), setup.task.head_size
    )
    return {**variables, "params": {**variables["params"], "head": head}}


def _with_fitted_head(
    setup: Setup, variables: dict[str, Any], source: TrainBatches
) -> dict[str, Any]:
    """The variables with a head that L-BFGS fits to the loss of the task on some examples."""
    batches = [*_head_batches(setup, variables, source)]
    features = jnp.stack([x for x, _ in batches])
    names = setup.task.abstract(1)
    targets = {name: jnp.stack([batch[name] for _, batch in batches]) for name in names}
    start, unravel = ravel_pytree(variables["params"]["head"])

    def loss(flat: jax.Array) -> jax.Array:
        params = {**variables["params"], "head": unravel(flat)}

        def one(pair: tuple[jax.Array, dict[str, jax.Array]]) -> jax.Array:
            x, batch = pair
            outputs: Any = setup.model.apply({**variables, "params": params}, x, start="head")
            return setup.task.per_example(outputs, batch)["loss"].mean()

        return jax.lax.map(one, (features, targets)).mean() + _DECAY * jnp.square(flat).sum()

    measure = jax.jit(jax.value_and_grad(loss))

    def of(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = measure(jnp.asarray(flat, start.dtype))
        return float(value), np.asarray(gradient, np.float64)

    found = minimize(
        of, np.asarray(start, np.float64), jac=True, method="L-BFGS-B", options={"maxiter": 100}
    )
    head = unravel(jnp.asarray(found.x, start.dtype))
    return {**variables, "params": {**variables["params"], "head": head}}


def _head_batches(
    setup: Setup, variables: dict[str, Any], source: TrainBatches
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Features in front of the head, and the batch, of some whole batches of training examples."""
    count = min(_HEAD_IMAGES, len(source.examples))
    chosen = np.random.default_rng(0).permutation(len(source.examples))[:count]
    forward = jax.jit(make_forward(setup.model, setup.preprocess.device, stop="head"))
    size = min(source.batch_size, count)
    for start in range(0, count - count % size, size):
        batch = gather(source.examples, chosen[start : start + size], setup.encode)
        yield np.asarray(forward(variables, batch)), batch

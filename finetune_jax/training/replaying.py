"""Computes a kept step once more, stage by stage, to show where it stopped being finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tasks, tree
from finetune_jax.base_variables import load_variables
from finetune_jax.data.augment import make_input_pipeline
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import read_config
from finetune_jax.mesh import use_cpu_devices
from finetune_jax.setup import Setup, open_setup
from finetune_jax.training.kept_step import KeptStep, read_step
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import Frozen, State, variables
from finetune_jax.training.step import Batch, make_loss, micro_batches
from finetune_jax.training.teacher import with_teacher

_WORST = 5  # number of examples whose losses are reported


def replay(workdir: Path, step: int | None = None) -> dict[str, Any]:
    """Computes the forward pass and the gradients of a kept step from its kept batch and state.

    Each micro-batch is computed by itself. SAM and the penalty of L2-SP are left out.

    Args:
      workdir: folder of the run.
      step: number of the step; None takes the latest one that was kept.

    Returns:
      ``step``; ``problem``; ``weights``, the first leaf that was not finite before the step, or
      None; ``stages``, a list of [micro-batch, stage, largest magnitude of its output], where the
      first stage is ``inputs``; ``first_stage``, the first stage whose output is not finite, or
      None; ``losses``, the highest losses as [loss, name of the example]; ``gradient``, the first
      leaf whose gradient is not finite, or None; and ``largest_gradient``, [leaf, magnitude].

    Raises:
      UserError: no such step was kept, or the folder is of another kind.
    """
    kept = read_step(workdir, step)
    number = kept.about["step"]
    if not kept.state:
        raise UserError(
            f"step {number} was skipped, and its state was not kept; train once more with "
            f"train.on_nan='stop' to keep the state of the first bad step"
        )
    config = read_config(workdir)
    use_cpu_devices(config.mesh.cpu_devices)
    setup = open_setup(config)
    setup = with_teacher(dataclasses.replace(setup, task=tasks.from_json(kept.about["task"])))
    phase = PhaseRun(setup, *(kept.about[name] for name in ("phase", "start", "steps")))
    state, frozen = _restored(setup, phase, kept)
    stages: list[list[Any]] = []
    losses = np.zeros(len(kept.about["indices"]))
    for part, batch, key in _parts(phase, kept, state):
        count = config.train.accumulate
        for stage, largest in _forward(phase, state, frozen, batch, key):
            if isinstance(largest, np.ndarray):
                losses[part::count] = largest
            else:
                stages.append([part, stage, largest])
    gradient = _gradient(phase, kept, state, frozen)
    flat = {path: float(jnp.max(jnp.abs(x))) for path, x in tree.flatten(gradient).items()}
    order = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")[:_WORST]
    return {
        "step": number,
        "problem": kept.about["problem"],
        "weights": tree.first_nonfinite(variables(state, frozen, averaged=False)),
        "stages": stages,
        "first_stage": next((s for _, s, x in stages if not np.isfinite(x)), None),
        "losses": [[float(losses[i]), kept.about["examples"][i]] for i in order],
        "gradient": tree.first_nonfinite(gradient),
        "largest_gradient": [*max(flat.items(), key=lambda x: np.nan_to_num(x[1], nan=np.inf))],
    }


def _restored(setup: Setup, phase: PhaseRun, kept: KeptStep) -> tuple[State, Frozen]:
    """State and frozen half before the step."""
    loaded, _ = load_variables(setup)
    key = jax.random.fold_in(jax.random.key(setup.config.seed), 1)
    for definition in setup.phases[: phase.index + 1]:
        loaded = {**loaded, "params": definition.plan.add_deltas(loaded["params"], key)}
    state, frozen = phase.create_state(loaded)

    def part(name: str) -> dict[str, Any]:
        start = f"{name}/"
        found = {p.removeprefix(start): x for p, x in kept.state.items() if p.startswith(start)}
        return {path: jnp.asarray(x) for path, x in found.items()}

    state = dataclasses.replace(
        state,
        params=tree.unflatten(part("params")),
        stats=tree.unflatten(part("stats")),
        hyper=tree.unflatten(part("hyper")),
        ema={},
        key=jax.random.wrap_key_data(jnp.asarray(kept.about["key"], jnp.uint32)),
    )
    return state, frozen.with_leaves(part("modified"))


def _parts(phase: PhaseRun, kept: KeptStep, state: State) -> Iterator[tuple[int, Batch, jax.Array]]:
    """(number, batch, PRNG key) of each micro-batch."""
    setup = phase.setup
    abstract = tree.flatten(phase.abstract_batch(1, cached=kept.about["cached"]))
    batch = tree.unflatten(
        {name: jnp.asarray(x, abstract[name].dtype) for name, x in kept.batch.items()}
    )
    key = jax.random.fold_in(state.key, kept.about["step"] - 1)
    count = setup.config.train.accumulate
    if count == 1:
        yield 0, batch, key
        return
    parts = micro_batches(batch, count, setup.task.views)
    for number in range(count):
        part = jax.tree.map(lambda x, number=number: x[number], parts)
        yield number, part, jax.random.fold_in(key, number)


def _forward(
    phase: PhaseRun, state: State, frozen: Frozen, batch: Batch, key: jax.Array
) -> Iterator[tuple[str, Any]]:
    """The largest magnitude of the output of each stage; last ``loss`` f32[b] of each example."""
    setup, plan, model = phase.setup, phase.plan, phase.model
    task, teacher = setup.task, setup.teacher
    augment_key, dropout_key = jax.random.split(key)
    pipeline = make_input_pipeline(setup.preprocess, setup.config.data.augment)
    start: str | None
    if "activation" in batch:
        x, start, names = batch["activation"], phase.after_prefix, plan.stages[len(plan.prefix) :]
    else:
        raw, start, names = batch, None, plan.stages
        x, batch = task.inputs(augment_key, lambda key: pipeline(key, raw))
        if teacher:
            batch = {**batch, **teacher.outputs(frozen.teacher, x)}
    yield "inputs", _largest(x)
    all_variables = variables(state, frozen, averaged=False)
    for stage, following in zip(names, [*names[1:], None], strict=True):
        if following is None:
            batch = {**batch, "features": x}
        call = jax.jit(
            lambda v, x, start=start, stop=following: model.apply(
                v, x, plan.mode, start=start, stop=stop,
                rngs={"dropout": dropout_key}, mutable=["batch_stats"],
            )[0]
        )  # fmt: skip
        x, start = call(all_variables, x), following
        yield stage, _largest(x)
    yield "loss", np.asarray(task.per_example(x, batch, state.hyper)["loss"], np.float64)


def _gradient(phase: PhaseRun, kept: KeptStep, state: State, frozen: Frozen) -> dict[str, Any]:
    """The gradient of the trainable half, summed over the micro-batches."""
    setup = phase.setup
    pipeline = make_input_pipeline(setup.preprocess, setup.config.data.augment)
    loss = make_loss(phase.model, setup.task, phase.plan, pipeline, setup.teacher)
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    parts = [
        gradient(state.params, state.stats, state.hyper, frozen, batch, key)[0]
        for _, batch, key in _parts(phase, kept, state)
    ]
    return jax.tree.map(lambda *x: sum(x), *parts)


def _largest(outputs: Any) -> float:
    """The largest magnitude in a tree of arrays; nan if one holds NaN."""
    floats = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    return max((float(jnp.max(jnp.abs(x))) for x in floats), default=0.0, key=_nan_last)


def _nan_last(value: float) -> float:
    return np.inf if np.isnan(value) else value

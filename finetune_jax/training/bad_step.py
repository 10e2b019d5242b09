"""Checks a step of a run, and handles a bad step as ``train.on_nan`` says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.data.batches import TrainBatches
from finetune_jax.errors import UserError
from finetune_jax.evaluation.scores import NonFinitePredictions
from finetune_jax.progress import say
from finetune_jax.training.kept_step import keep_step, names_of
from finetune_jax.training.nonfinite import REMEDY, longest_row
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.run import Run
from finetune_jax.training.state import State
from finetune_jax.training.step import Metrics

_SHOWN = 8  # number of examples that a message names


@dataclasses.dataclass(frozen=True)
class TakenStep:
    """A step that was taken.

    Attributes:
      phase: phase of the step.
      number: number of the step within the run, from 1.
      batches: batches of the run.
      cached: whether the batches hold activations.
      before: state before the step, if a search checks every step; else None.
      after: state after the step.
      metrics: metrics of the step.
      modified: modified leaves by path, see `Checkpoints`.
    """

    phase: PhaseRun
    number: int
    batches: TrainBatches
    cached: bool
    before: State | None
    after: State
    metrics: Metrics
    modified: dict[str, Any]


def check_step(run: Run, taken: TakenStep, *, state: bool) -> None:
    """Checks a step, and the steps before it that were not checked.

    Args:
      run: the run.
      taken: the step.
      state: whether to look at the state too, and not at the metrics alone.

    Raises:
      GoBack: the run continues from its latest checkpoint.
      UserError: the run ends here.
    """
    watch = run.watch
    _skipped(run, taken)
    problem = watch.problem(taken.metrics, taken.after if state else None)
    if problem is None:
        return
    run.checkpoints.wait()  # so that the latest checkpoint is complete
    latest = run.checkpoints.latest_step
    if taken.before is None:
        raise watch.search(taken.number, problem, latest)
    kept = _keep(run, taken, taken.number, taken.before, problem)
    if watch.policy == "back_up":
        say(kept)
        raise watch.back_up(taken.number, problem, latest)
    raise UserError(_message(run, taken, problem, kept))


def handle_evaluation(run: Run, number: int, error: NonFinitePredictions) -> None:
    """Handles an evaluation whose predictions are not finite although the state is finite.

    Args:
      run: the run; with ``skip`` the run continues without scores.
      number: step of the evaluation.
      error: what the evaluation raised.

    Raises:
      GoBack: the run continues from its latest checkpoint.
      UserError: the run ends here.
    """
    problem = f"validation: {error}"
    if run.watch.policy == "skip":
        say(f"step {number}  {problem}")
        return
    if run.watch.policy == "back_up":
        run.checkpoints.wait()
        raise run.watch.back_up(number, problem, run.checkpoints.latest_step)
    raise UserError(f"step {number}  {problem}; {REMEDY}")


def _skipped(run: Run, taken: TakenStep) -> None:
    """Counts, prints and keeps the steps that were skipped; ends the run after too many."""
    watch = run.watch
    new = watch.newly_skipped()
    if not new:
        return
    for number in new:
        _keep(run, taken, number, None, "not finite")
    row = longest_row(watch.skipped)
    shown = ", ".join(map(str, new[:_SHOWN])) + (", …" if len(new) > _SHOWN else "")
    say(f"not finite and skipped: step {shown} ({len(watch.skipped)} in all)")
    if row >= watch.limit:
        # No update was made since the first of these steps, so this is also their state.
        problem = f"{row} steps in a row were not finite and were skipped (train.nan_limit)"
        last = dataclasses.replace(taken, number=new[-1])
        kept = _keep(run, last, last.number, taken.after, problem)
        raise UserError(_message(run, last, problem, kept))


def _keep(run: Run, taken: TakenStep, number: int, state: State | None, problem: str) -> str:
    """Keeps the batch of a step, and a state; returns a text that says where."""
    phase, position = taken.phase, number - 1 + run.watch.shift
    indices = taken.batches.indices(position)
    about = {
        "step": number,
        "phase": phase.index,
        "start": phase.start,
        "steps": phase.steps,
        "cached": taken.cached,
        "problem": problem,
        "policy": run.watch.policy,
        "task": phase.setup.task.to_json(),
        "indices": indices.tolist(),
        "examples": _names(run, indices),
    }
    return keep_step(run.workdir, about, taken.batches.batch(position), state, taken.modified)


def _names(run: Run, indices: np.ndarray) -> list[str]:
    return names_of(run.caches.opened_splits.get("train", lambda: run.splits["train"]), indices)


def _message(run: Run, taken: TakenStep, problem: str, kept: str) -> str:
    """The message that ends a run: the step, the leaves, the examples, and what to do."""
    indices = taken.batches.indices(taken.number - 1 + run.watch.shift)
    names = _names(run, indices)
    shown = "; ".join(names[:_SHOWN]) + ("; …" if len(names) > _SHOWN else "")
    # A finite divergence is not skipped: its state stays bad.
    others = [] if run.watch.policy == "back_up" else ["back_up"]
    if run.watch.policy == "stop" and "a divergence" not in problem:
        others = ["skip", *others]
    return (
        f"{problem} at step {taken.number}. {_leaves(taken)}. Its batch has {len(names)} examples: "
        f"{shown}. The {kept}; to look at them: python -m finetune_jax.replay "
        f"--workdir={run.workdir} --step={taken.number}. To train on: {REMEDY}"
        f"{', or set train.on_nan to ' + ' or '.join(others) if others else ''}"
    )


def _leaves(taken: TakenStep) -> str:
    """Which leaf is the largest before the step, and which is the first bad leaf after it."""
    before = taken.after if taken.before is None else taken.before
    path, value = largest_leaf(before.params)
    text = f"The largest value of a leaf before the step is {value:.3g}, in {path}"
    bad = tree.first_nonfinite(taken.after)
    return f"{text}; after the step {bad} holds NaN or infinity" if bad else text


def largest_leaf(params: tree.Tree) -> tuple[str, float]:
    """Returns the path of the leaf with the largest magnitude, and this magnitude."""
    flat = tree.flatten(params)
    values = jax.device_get([jnp.max(jnp.abs(leaf)) for leaf in flat.values()])
    number = int(np.argmax(np.nan_to_num(values, nan=np.inf)))
    return [*flat][number], float(values[number])

"""Another length for a run: its last phase goes on from the latest checkpoint.

The steps that were taken are kept as they are. With a schedule that has the same values at these
steps under both lengths, such as ``constant``, the weights are bit-identical to those of a run of
the new length from the start. Other schedules are stretched over the new length from the next step
on, and the run says by how much the learning rate changes there.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.setup import Setup
from finetune_jax.training.optimizer import make_rates
from finetune_jax.training.prefix_cache import is_read_often

KEYS = ("train.epochs", "train.steps")
"""Keys of the config that say how long a run is."""

ASIDE = "extended_from"
"""Folder in a run's folder, with ``result.json`` and ``artifact/`` of the shorter run by steps."""


def is_length_alone(lines: Sequence[str]) -> bool:
    """Whether `config.difference` has lines, and all are about the length of the run."""
    return bool(lines) and all(line.split(":")[0] in KEYS for line in lines)


def changed_length(
    setup: Setup,
    workdir: Path,
    before: Mapping[str, Any],
    examples: int,
    done: int,
) -> tuple[list[int], list[int]] | None:
    """Lengths of the phases, in steps, before a change of the config's length and now.

    Args:
      setup: setup of the run.
      workdir: run folder, for messages.
      before: config of the run so far, as JSON.
      examples: number of training examples.
      done: number of steps of the latest checkpoint.

    Returns:
      None where all lengths are as before.

    Raises:
      UserError: a phase before the last would have another length, or the run has already done
        more steps than it would have.
    """
    old, new = _steps_of(setup, before, examples), setup.phase_steps(examples)
    if old == new:
        return None
    what = f"--workdir={workdir}: {_changes(setup, before)}"
    number = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    if number < len(old) - 1:
        raise UserError(
            f"{what}: phase {number + 1} of {len(old)} would have {new[number]} steps in place of "
            f"{old[number]}, and only the last phase of a run can get another length; use another "
            f"--workdir"
        )
    if sum(new) <= done:
        raise UserError(
            f"{what}: the run has done {done} steps, which cannot be taken back; expected more "
            f"than {done} steps, found {sum(new)}; use another --workdir for a shorter run"
        )
    return old, new


def remarks(
    setup: Setup, lengths: tuple[list[int], list[int]], examples: int, done: int
) -> Iterator[str]:
    """What another length changes: the learning rates at the next step, and the last bits.

    Args:
      setup, examples, done: as for `changed_length`.
      lengths: result of `changed_length`.
    """
    old, new = lengths
    start = sum(new[:-1])
    yield f"the run had {sum(old)} steps and now has {sum(new)}; it goes on after step {done}"
    if done > start:
        yield from _schedules(setup, start, old[-1], new[-1], done)
    one, other = (is_read_often(setup, steps, examples) for steps in (old[-1], new[-1]))
    if done > start and one != other and setup.plan.prefix:
        yield (
            "the frozen prefix is cached for one of the two lengths only, so the last bits may "
            "differ from those of a run of this length from the start"
        )


def _schedules(setup: Setup, start: int, old: int, new: int, done: int) -> Iterator[str]:
    settings, phase = setup.config.optimizer, setup.phases[-1]
    one, other = (make_rates(settings, phase, start, max(steps, 1)) for steps in (old, new))
    peak = phase.lr * settings.learning_rate
    # The steps that were taken, and the next one.
    steps = jnp.arange(done - start + 1, dtype=jnp.float32)
    for name in other.schedules:
        was, will = (
            peak * np.broadcast_to(np.asarray(rates.schedules[name](steps)), steps.shape)
            for rates in (one, other)
        )
        text = phase.plan.groups[name].schedule or phase.schedule or settings.schedule
        if np.array_equal(was[:-1], will[:-1]):
            yield (
                f"group {name!r}: the schedule {text!r} has the same learning rates up to here, "
                f"{will[-1]:.4g} at step {done + 1}"
            )
        else:
            yield (
                f"group {name!r}: the schedule {text!r} is stretched over {new} steps: its "
                f"learning rate was {was[-2]:.4g} at step {done} and is {will[-1]:.4g} at step "
                f"{done + 1}; in a run of this length from the start it is {will[-2]:.4g} at step "
                f"{done}"
            )


def set_aside(workdir: Path, steps: int) -> None:
    """Moves the result and the artifact of a shorter run away, before the folder is claimed.

    Without ``result.json``, a run is not finished; so it is moved first.

    Args:
      workdir: run folder.
      steps: number of steps of the shorter run.
    """
    for name in ("result.json", "artifact"):
        source, target = workdir / name, workdir / ASIDE / str(steps) / name
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(source, target)


def _steps_of(setup: Setup, before: Mapping[str, Any], examples: int) -> list[int]:
    """Steps of each phase under the length of another config."""
    config = setup.config.copy_and_resolve_references()
    config.train.update({key.partition(".")[2]: _value(before, key) for key in KEYS})
    return dataclasses.replace(setup, config=config).phase_steps(examples)


def _value(config: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return config[section][name]


def _changes(setup: Setup, before: Mapping[str, Any]) -> str:
    lines = [
        f"{key}: {_value(before, key)!r} -> {_value(setup.config, key)!r}"
        for key in KEYS
        if _value(before, key) != _value(setup.config, key)
    ]
    return ", ".join(lines)

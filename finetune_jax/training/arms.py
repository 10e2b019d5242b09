"""Arms of one structure in lockstep: their train steps as one compiled program, where that is fast.

Arms that differ only in seed, learning rate, weight decay and label smoothing have the same step
with other numbers as inputs. Each arm remains a run with its own checkpoints, metrics, audit and
artifact; only the step is fused: `vmap` over the trainable states, while the frozen leaves, and
everything that the program computes from them alone, are shared by all arms that see the same
batch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from finetune_jax import config as config_lib
from finetune_jax.errors import Blocked, UserError
from finetune_jax.interruption import Interrupted, signal_number
from finetune_jax.progress import muted, say
from finetune_jax.setup import Setup
from finetune_jax.training.arm_group import GroupRecord, go_back_to_common_step
from finetune_jax.training.audit import AuditError
from finetune_jax.training.cost import measure
from finetune_jax.training.fused_step import FusedStep
from finetune_jax.training.loop import Steps, steps
from finetune_jax.training.shared import SharedCaches
from finetune_jax.training.state import State
from finetune_jax.training.step import Metrics
from finetune_jax.training.step_request import StepRequest


def run_arms(
    setups: Sequence[Setup],
    workdirs: Sequence[Path],
    *,
    memory_bytes: int = 0,
    done: Callable[[int, dict[str, Any]], None] = lambda number, result: None,
    accept_changed_data: bool = False,
) -> list[dict[str, Any]]:
    """Runs several setups; setups of one structure share programs, data and frozen leaves.

    Args:
      setups: setups of any structures, grouped by `structure`.
      workdirs: run folder of each setup.
      memory_bytes: memory for the arms that run at the same time; 0 takes 80 % of a device's
        memory, or of the free memory on a CPU.
      done: function that is called with the number and the figures of each arm when the arm ends.
      accept_changed_data: see `loop.train`.

    Returns:
      The figures of each run as `loop.train` returns them, in order. An arm that failed has
      ``{"error": message}`` and does not stop the others.
    """
    results: list[dict[str, Any]] = [{} for _ in setups]
    groups: dict[str, list[int]] = {}
    for number, setup in enumerate(setups):
        values = config_lib.to_json(setup.config)
        groups.setdefault(structure(values), []).append(number)
    limit = memory_bytes or _free_bytes()
    for members in groups.values():
        waiting = list(members)
        while waiting:
            first, names = waiting[0], {n: workdirs[n].name for n in waiting}
            found = GroupRecord.read(workdirs[first])
            record = found or GroupRecord(len(members), list(names.values()))
            numbers = [n for n in waiting if names[n] in record.members]
            if found:
                folders = [workdirs[n] for n in numbers if not _has_ended(workdirs[n])]
                go_back_to_common_step(folders, setups[first].config.checkpoint.keep_last)
            group = _Group(SharedCaches(arms=record.arms), done, accept_changed_data, record)
            with contextlib.closing(group):
                group.add(first, setups[first], workdirs[first])
                numbers = numbers[: group.fitting(limit)]
                for number in numbers[1:]:
                    group.add(number, setups[number], workdirs[number])
                if not found:
                    record.members = [names[n] for n in numbers]
                record.write(list(group.folders.values()))
                for number, result in group.drive().items():
                    results[number] = result
            waiting = [n for n in waiting if n not in numbers]
    return results


def structure(config: dict[str, Any]) -> str:
    """Cache key: the config without the fields that are run-time inputs of the train step.

    These fields are seed, learning rate, weight decay and label smoothing.

    Args:
      config: resolved config, as JSON.
    """
    values = copy.deepcopy(config)
    del values["seed"], values["optimizer"]["learning_rate"], values["task"]["label_smoothing"]
    # A step without decay is another program, because its compiled form computes no decay.
    values["optimizer"]["weight_decay"] = bool(values["optimizer"]["weight_decay"])
    return json.dumps(values, sort_keys=True)


@dataclasses.dataclass
class _Group:
    """Arms that advance together.

    Attributes:
      caches: caches that the arms share.
      done: see `run_arms`.
      accept_changed_data: see `run_arms`.
      record: how the group is trained, which is kept in the folder of every arm.
      arms: arms by number, as generators of `loop.steps`.
      folders: run folders by number.
      requests: the step that each unfinished arm waits for, by number of the arm.
      trained: arms that have taken all steps and have not been scored.
      results: figures of finished arms by number.
      programs: fused steps by (number of the phase, whether batches hold activations).
      interrupted: set when a signal has ended an arm, which has saved a checkpoint.
    """

    caches: SharedCaches
    done: Callable[[int, dict[str, Any]], None]
    accept_changed_data: bool
    record: GroupRecord
    arms: dict[int, Steps] = dataclasses.field(default_factory=dict)
    folders: dict[int, Path] = dataclasses.field(default_factory=dict)
    requests: dict[int, StepRequest] = dataclasses.field(default_factory=dict)
    trained: list[int] = dataclasses.field(default_factory=list)
    results: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    programs: dict[tuple[int, bool], FusedStep] = dataclasses.field(default_factory=dict)
    interrupted: Interrupted | None = None

    def add(self, number: int, setup: Setup, workdir: Path) -> None:
        """Starts an arm and runs it up to its first step."""
        if asked := signal_number():  # the arms before wait for their first step
            raise Interrupted(asked)
        self.arms[number] = steps(
            setup, workdir, self.caches, accept_changed_data=self.accept_changed_data
        )
        self.folders[number] = workdir
        self._advance(number, None)

    def _advance(self, number: int, value: tuple[State, Metrics] | None) -> None:
        """Runs an arm up to its next step or its end; `value` is the result of the step before."""
        # All arms would print the same messages, so only the first arm prints.
        quiet = muted() if number != min(self.arms) else contextlib.nullcontext()
        self.requests.pop(number, None)
        arm = self.arms[number]
        try:
            with quiet:
                request = arm.send(value)
            if request is None:
                self.trained.append(number)
            else:
                self.requests[number] = request
        except StopIteration as end:
            self.results[number] = end.value
        except Interrupted as error:
            if not error.saved:
                raise
            self.interrupted = error
        except Blocked:
            raise
        except (UserError, AuditError) as error:
            say(f"arm {number} ended: {error}")
            self.results[number] = {"error": str(error)}
        if number in self.results:
            self.done(number, self.results[number])

    def fitting(self, limit: int) -> int:
        """Returns the number of arms that fit into `limit` bytes, by the first arm's step."""
        if not self.requests:
            return 1
        request = next(iter(self.requests.values()))
        cost = measure(request.step, request.state)
        state_bytes = sum(x.nbytes for x in jax.tree.leaves(request.state) if hasattr(x, "nbytes"))
        # A state exists three times: as the state of the arm, stacked, and as result of the step.
        per_arm = 3 * state_bytes + cost.temp_bytes
        shared = max(cost.argument_bytes - state_bytes, 0)
        return max(1, int((limit - shared) // max(per_arm, 1)))

    def drive(self) -> dict[int, dict[str, Any]]:
        """Advances all arms to their ends and returns their results by number.

        No arm is scored before all arms have saved their last step. So the arms that are left after
        an interruption have the same number of arms beside them at each step as before.
        """
        while self.requests or (self.trained and not self.interrupted):
            if not self.requests:
                self._advance(self.trained.pop(0), None)
                continue
            together: dict[tuple[int, bool], dict[int, StepRequest]] = {}
            for number, request in self.requests.items():
                key = (request.phase.index, request.cached)
                together.setdefault(key, {})[number] = request
            for key, requests in together.items():
                program = self.programs.get(key)
                if program is None or not requests.keys() <= program.members:
                    program = self.programs[key] = self._program(_step_name(*key), requests)
                for number, value in program(requests).items():
                    self._advance(number, value)
        if self.interrupted:
            raise self.interrupted
        return self.results

    def _program(self, name: str, requests: dict[int, StepRequest]) -> FusedStep:
        """The program of a step; the first choice for the step of this name is recorded."""
        program = FusedStep(requests, self.record.fused.get(name))
        if name not in self.record.fused:
            self.record.fused[name] = program.fused
            self.record.write(list(self.folders.values()))
        return program

    def close(self) -> None:
        """Ends the arms that have not ended; they release their files."""
        for arm in self.arms.values():
            arm.close()


def _step_name(phase: int, cached: bool) -> str:
    """Name of a step in the record of its group."""
    return f"phase {phase}" + ", cached" * cached


def _has_ended(workdir: Path) -> bool:
    return (workdir / "result.json").exists()


def _free_bytes() -> int:
    statistics = jax.devices()[0].memory_stats() or {}
    total = statistics.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_AVPHYS_PAGES"
    )
    return int(0.8 * total)

"""Arms of one structure in lockstep: their steps as one compiled program, where that pays.

Arms that differ only in seed, learning rate, weight decay and label smoothing have the same step
over other numbers. Each stays a run of its own, with its checkpoints, metrics, audit and artifact;
what is fused is the step: `vmap` over the trainable states, with the frozen leaves, and whatever
the program computes from them alone, once for all arms that see the same batch.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import json
import os
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax import config as config_lib
from finetune_jax.errors import UserError
from finetune_jax.mesh import put_batch, state_sharding
from finetune_jax.progress import muted, say
from finetune_jax.setup import Setup
from finetune_jax.training.audit import AuditError
from finetune_jax.training.cost import measure
from finetune_jax.training.loop import steps
from finetune_jax.training.shared import Shared, StepCall


def run_arms(
    setups: Sequence[Setup],
    workdirs: Sequence[Path],
    *,
    memory_bytes: int = 0,
    done: Callable[[int, dict[str, Any]], None] = lambda number, result: None,
) -> list[dict[str, Any]]:
    """Runs several setups; those of one structure share programs, data and frozen leaves.

    Args:
      setups: any; grouped by `structure`.
      workdirs: run folder of each.
      memory_bytes: for the arms that run at once; 0 takes 80 % of a device's memory, or of what is
        free on a CPU.
      done: told the number and the figures of each arm as it ends.

    Returns:
      The figures of each run as `loop.train` returns them, in order. An arm that failed has
      ``{"error": message}`` and leaves the others alone.
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
            group = _Group(Shared(arms=len(members)), done)
            group.add(waiting[0], setups[waiting[0]], workdirs[waiting[0]])
            size = group.fitting(limit)
            for number in waiting[1:size]:
                group.add(number, setups[number], workdirs[number])
            for number, result in group.drive().items():
                results[number] = result
            waiting = waiting[size:]
    return results


def structure(config: dict[str, Any]) -> str:
    """Text that is equal for configs whose steps are one program over other numbers.

    Args:
      config: resolved, as JSON.
    """
    values = copy.deepcopy(config)
    del values["seed"], values["optimizer"]["learning_rate"], values["task"]["label_smoothing"]
    # A step without decay is another program: the compiled one holds none.
    values["optimizer"]["weight_decay"] = bool(values["optimizer"]["weight_decay"])
    return json.dumps(values, sort_keys=True)


@dataclasses.dataclass
class _Group:
    """Arms that advance together.

    Attributes:
      shared: between them.
      done: see `run_arms`.
      arms: generators of `loop.steps` by number.
      calls: the step each unfinished arm waits for.
      results: of the finished.
      programs: fused steps by phase and kind of batch.
    """

    shared: Shared
    done: Callable[[int, dict[str, Any]], None]
    arms: dict[int, Generator[StepCall, Any, dict[str, Any]]] = dataclasses.field(
        default_factory=dict
    )
    calls: dict[int, StepCall] = dataclasses.field(default_factory=dict)
    results: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    programs: dict[Any, _Fused] = dataclasses.field(default_factory=dict)

    def add(self, number: int, setup: Setup, workdir: Path) -> None:
        """Starts an arm: runs it up to its first step."""
        self.arms[number] = steps(setup, workdir, self.shared)
        self._advance(number, None)

    def _advance(self, number: int, value: Any) -> None:
        # Many arms would say the same things; the first speaks for all.
        quiet = muted() if number != min(self.arms) else contextlib.nullcontext()
        self.calls.pop(number, None)
        try:
            with quiet:
                self.calls[number] = self.arms[number].send(value)
        except StopIteration as end:
            self.results[number] = end.value
        except (UserError, AuditError) as error:
            say(f"arm {number} ended: {error}")
            self.results[number] = {"error": str(error)}
        if number in self.results:
            self.done(number, self.results[number])

    def fitting(self, limit: int) -> int:
        """How many arms fit into `limit` bytes, judged by the compiled step of the first."""
        if not self.calls:
            return 1
        call = next(iter(self.calls.values()))
        cost = measure(call.step, call.state)
        # A state exists as an arm's own, stacked, and as the step's result.
        own = 3 * _bytes(call.state) + cost.temp_bytes
        shared = max(cost.argument_bytes - _bytes(call.state), 0)
        return max(1, int((limit - shared) // max(own, 1)))

    def drive(self) -> dict[int, dict[str, Any]]:
        """Advances all arms to their ends; returns their results."""
        while self.calls:
            together: dict[Any, dict[int, StepCall]] = {}
            for number, call in self.calls.items():
                together.setdefault((call.run.index, call.cached), {})[number] = call
            for key, calls in together.items():
                program = self.programs.get(key)
                if program is None or not calls.keys() <= program.members:
                    program = self.programs[key] = _Fused(calls)
                for number, value in program(calls).items():
                    self._advance(number, value)
        return self.results


# On a CPU, a longer step is bound by arithmetic, of which fused arms have as much to do; shorter
# ones, such as those of a probe on cached features, are bound by what every call costs.
_ARITHMETIC_SECONDS = 0.02


class _Fused:
    """The step of several arms as one program, or one after another if that is no slower.

    Args:
      calls: the first step of each arm. Arms with the same seed at the same step share a batch if
        every seed has as many arms.
    """

    def __init__(self, calls: dict[int, StepCall]) -> None:
        self.members = frozenset(calls)
        self._last: dict[int, StepCall] = {}
        by_batch: dict[Any, list[int]] = {}
        for number, call in calls.items():
            by_batch.setdefault((_seed(call), call.number), []).append(number)
        rows = list(by_batch.values())
        if len({len(row) for row in rows}) > 1:
            rows = [[number] for number in calls]
        self._rows = rows
        first = calls[rows[0][0]]
        self._mesh = first.run.setup.mesh
        self._bases, self._base_axes = _stack_bases([calls[row[0]].base for row in rows])
        self._function = self._compile(first)
        self.pays = self._try(calls)

    def __call__(self, calls: dict[int, StepCall]) -> dict[int, Any]:
        """The (state, metrics) of each arm that waits for a step."""
        if not self.pays:

            def alone(call: StepCall) -> Any:
                return call.step(call.state, call.base, put_batch(call.batch, self._mesh))

            # From threads, because a call on a CPU returns when the step is done, and one step
            # does not keep all cores busy. Steps with collectives must not overtake each other.
            workers = os.cpu_count() if _on_cpu() and self._mesh.size == 1 else 1
            with concurrent.futures.ThreadPoolExecutor(workers) as pool:
                return dict(zip(calls, pool.map(alone, calls.values()), strict=True))
        self._last.update(calls)
        outputs = self._function(*self._arguments(self._last))
        for number, output in outputs.items():
            # An arm that has ended is computed on and nobody looks.
            self._last[number] = dataclasses.replace(self._last[number], state=output[0])
        return {number: outputs[number] for number in calls}

    def _arguments(self, calls: dict[int, StepCall]) -> tuple[Any, ...]:
        states = {number: calls[number].state for row in self._rows for number in row}
        newest = [max((calls[n] for n in row), key=lambda c: c.number) for row in self._rows]
        return states, self._bases, [put_batch(call.batch, self._mesh) for call in newest]

    def _compile(self, first: StepCall) -> Any:
        step, rows = first.run.train_step(), self._rows
        fused = step
        if len(rows[0]) > 1:
            fused = jax.vmap(fused, in_axes=(0, None, None))
        if len(rows) > 1:
            fused = jax.vmap(fused, in_axes=(0, self._base_axes, 0))

        def stack(items: list[Any]) -> Any:
            return jax.tree.map(lambda *x: jnp.stack(x), *items) if len(items) > 1 else items[0]

        def together(states: dict[int, Any], bases: Any, batches: list[Any]) -> dict[int, Any]:
            nested = stack([stack([states[n] for n in row]) for row in rows])
            outputs = fused(nested, bases, stack(batches))
            found = {}
            for i, row in enumerate(rows):
                of_row = _part(outputs, i, len(rows))
                for j, number in enumerate(row):
                    found[number] = _part(of_row, j, len(row))
            return found

        sharding = state_sharding(self._mesh, first.state)
        return jax.jit(together, out_shardings={n: (sharding, None) for n in self.members})

    def _try(self, calls: dict[int, StepCall]) -> bool:
        """Whether the fused step is faster than as many single ones, by the clock."""
        if len(calls) == 1:
            return False
        call = next(iter(calls.values()))
        batch = put_batch(call.batch, self._mesh)
        # The single step donates its state.
        alone = _seconds(lambda: call.step(jax.tree.map(jnp.copy, call.state), call.base, batch))
        shares_prefix = bool(call.run.plan.prefix) and not call.cached and len(self._rows[0]) > 1
        if _on_cpu() and alone > _ARITHMETIC_SECONDS and not shares_prefix:
            say(f"{len(calls)} arms one after another: a step of {alone:.2g} s fills the CPU")
            return False
        arguments = self._arguments(calls)
        try:
            fused = _seconds(lambda: self._function(*arguments), limit=len(calls) * alone)
        except NotImplementedError:  # JAX has no batch of weight gradients of grouped convolutions
            say(f"{len(calls)} arms one after another: their step has no form for several")
            return False
        ratio, pays = fused / alone, fused < len(calls) * alone
        say(
            f"{len(calls)} arms {'fused' if pays else 'one after another'}: fused, a step takes "
            f"{ratio:.1f} times one arm's"
        )
        return pays


def _stack_bases(bases: list[Any]) -> tuple[Any, Any]:
    """(base of all rows, its vmap axes): leaves that are one and the same array stay single."""
    same = jax.tree.map(lambda *x: all(y is x[0] for y in x), *bases)
    axes = jax.tree.map(lambda s: None if s else 0, same)
    whole = jax.tree.map(lambda s, *x: x[0] if s else jnp.stack(x), same, *bases)
    return whole, axes


def _part(outputs: Any, index: int, count: int) -> Any:
    """One of `count` along the leading axis, which is absent when there is only one."""
    return outputs if count == 1 else jax.tree.map(lambda x: x[index], outputs)


def _seed(call: StepCall) -> int:
    return call.run.setup.config.seed


def _seconds(function: Any, repeats: int = 3, limit: float = float("inf")) -> float:
    """The fastest of some calls after one to warm up, in seconds; one call if it breaks `limit`."""
    jax.block_until_ready(function())
    times: list[float] = []
    while len(times) < repeats and min(times, default=0) < limit:
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return min(times)


def _on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


def _bytes(state: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))


def _free_bytes() -> int:
    statistics = jax.devices()[0].memory_stats() or {}
    total = statistics.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_AVPHYS_PAGES"
    )
    return int(0.8 * total)

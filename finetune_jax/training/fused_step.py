"""The train steps of several arms as one compiled program."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.mesh import put_batch, state_sharding
from finetune_jax.progress import say
from finetune_jax.training.state import Frozen, State
from finetune_jax.training.step import Batch, Metrics
from finetune_jax.training.step_request import StepRequest

Results = dict[int, tuple[State, Metrics]]
"""Result of a step by number of the arm."""

# On a CPU, the time of a longer step goes into arithmetic, which fusing does not reduce; the time
# of a shorter step, such as a linear probe's on cached features, goes into the overhead of a call.
_ARITHMETIC_SECONDS = 0.02


class FusedStep:
    """The step of several arms as one program, or one step after another if that is no slower.

    Args:
      requests: the first step of each arm, by number of the arm. Arms with the same seed at the
        same step share a batch if every seed has the same number of arms.
      fused: whether the steps are one program; None measures which is faster.
    """

    def __init__(self, requests: dict[int, StepRequest], fused: bool | None = None) -> None:
        self.members = frozenset(requests)
        self._last: dict[int, StepRequest] = {}
        self._rows = _rows(requests)
        first = requests[self._rows[0][0]]
        self._mesh = first.phase.setup.mesh
        self._frozen, self._frozen_axes = _stack_frozen(
            [requests[row[0]].frozen for row in self._rows]
        )
        self._function = self._compile(first)
        self.fused = self._measure(requests) if fused is None else fused

    def __call__(self, requests: dict[int, StepRequest]) -> Results:
        """Returns the (state, metrics) of each arm that waits for a step."""
        if not self.fused:
            return self._one_by_one(requests)
        late = self._with_another_batch(requests)
        alone = self._one_by_one(late) if late else {}
        requests = {number: r for number, r in requests.items() if number not in late}
        if not requests:
            return alone
        self._last.update(requests)
        outputs = self._function(*self._arguments(self._last, requests))
        for number, output in outputs.items():
            # An arm that has ended is still computed; its results are dropped.
            self._last[number] = dataclasses.replace(self._last[number], state=output[0])
        return alone | {number: outputs[number] for number in requests}

    def _with_another_batch(self, requests: dict[int, StepRequest]) -> dict[int, StepRequest]:
        """Requests of arms that went back: their batch is not the batch of most arms in their row.

        Their states are copies, because the single step donates them and `_last` may hold them.
        """
        late: dict[int, StepRequest] = {}
        for row in self._rows:
            asked = [requests[number] for number in row if number in requests]
            if asked:
                counts = collections.Counter(request.batch_number for request in asked)
                most = counts.most_common(1)[0][0]
                late |= {
                    n: dataclasses.replace(r, state=jax.tree.map(jnp.copy, r.state))
                    for n, r in requests.items()
                    if n in row and r.batch_number != most
                }
        return late

    def _one_by_one(self, requests: dict[int, StepRequest]) -> Results:
        def single(request: StepRequest) -> tuple[State, Metrics]:
            batch = put_batch(request.batch, self._mesh)
            return request.step(request.state, request.frozen, batch)

        # From threads, because a call on a CPU returns when the step is done, and one step does not
        # keep all cores busy. Steps with collectives must run in the same order on all devices.
        workers = os.cpu_count() if _on_cpu() and self._mesh.size == 1 else 1
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            return dict(zip(requests, pool.map(single, requests.values()), strict=True))

    def _arguments(
        self, requests: dict[int, StepRequest], asked: Collection[int]
    ) -> tuple[dict[int, State], Frozen, list[Batch]]:
        """Arguments of the fused step; each row reads the batch of its arms in `asked`."""
        states = {number: requests[number].state for row in self._rows for number in row}
        readers = [requests[next((n for n in row if n in asked), row[0])] for row in self._rows]
        return states, self._frozen, [put_batch(request.batch, self._mesh) for request in readers]

    def _compile(self, first: StepRequest) -> Callable[..., Results]:
        """The jitted function of (states by arm, frozen half, batch of each row) to results."""
        rows = self._rows
        fused: Callable[..., Any] = first.phase.train_step()
        if len(rows[0]) > 1:
            fused = jax.vmap(fused, in_axes=(0, None, None))
        if len(rows) > 1:
            fused = jax.vmap(fused, in_axes=(0, self._frozen_axes, 0))

        def together(states: dict[int, State], frozen: Frozen, batches: list[Batch]) -> Results:
            nested = _stack([_stack([states[n] for n in row]) for row in rows])
            outputs = fused(nested, frozen, _stack(batches))
            results = {}
            for i, row in enumerate(rows):
                of_row = _part(outputs, i, len(rows))
                for j, number in enumerate(row):
                    results[number] = _part(of_row, j, len(row))
            return results

        sharding = state_sharding(self._mesh, first.state)
        return jax.jit(together, out_shardings={n: (sharding, None) for n in self.members})

    def _measure(self, requests: dict[int, StepRequest]) -> bool:
        """Measures whether the fused step is faster than the single steps of all arms."""
        if len(requests) == 1:
            return False
        count, request = len(requests), next(iter(requests.values()))
        batch = put_batch(request.batch, self._mesh)
        # Copies, because the single step donates its state.
        single = _seconds(
            lambda: request.step(jax.tree.map(jnp.copy, request.state), request.frozen, batch)
        )
        has_prefix = bool(request.phase.plan.prefix) and not request.cached
        shares_prefix = has_prefix and len(self._rows[0]) > 1
        if _on_cpu() and single > _ARITHMETIC_SECONDS and not shares_prefix:
            say(f"{count} arms one after another: a step of {single:.2g} s is bound by arithmetic")
            return False
        arguments = self._arguments(requests, requests)
        try:
            fused = _seconds(lambda: self._function(*arguments), limit=count * single)
        except NotImplementedError:  # JAX cannot batch weight gradients of grouped convolutions
            say(f"{count} arms one after another: JAX cannot batch their step")
            return False
        faster = fused < count * single
        say(
            f"{count} arms {'fused' if faster else 'one after another'}: a fused step takes "
            f"{fused / single:.1f} times a single step"
        )
        return faster


def _rows(requests: dict[int, StepRequest]) -> list[list[int]]:
    """Numbers of the arms, one row per batch; every row has the same length."""
    by_batch: dict[tuple[int, int], list[int]] = {}
    for number, request in requests.items():
        seed = request.phase.setup.config.seed
        by_batch.setdefault((seed, request.batch_number), []).append(number)
    rows = list(by_batch.values())
    if len({len(row) for row in rows}) > 1:
        return [[number] for number in requests]
    return rows


def _stack(items: list[Any]) -> Any:
    """Stacks trees along a new leading axis; a single tree stays without the axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *items) if len(items) > 1 else items[0]


def _stack_frozen(frozen: list[Frozen]) -> tuple[Frozen, Frozen]:
    """(frozen half of all rows, its vmap axes); a leaf that all rows share is not stacked."""
    same = jax.tree.map(lambda *x: all(y is x[0] for y in x), *frozen)
    axes = jax.tree.map(lambda s: None if s else 0, same)
    stacked = jax.tree.map(lambda s, *x: x[0] if s else jnp.stack(x), same, *frozen)
    return stacked, axes


def _part(outputs: Any, index: int, count: int) -> Any:
    """One of `count` parts along the leading axis, which is absent when there is one part."""
    return outputs if count == 1 else jax.tree.map(lambda x: x[index], outputs)


def _seconds(function: Callable[[], Any], repeats: int = 3, limit: float = float("inf")) -> float:
    """The shortest time of some calls after one warm-up call, in seconds.

    There is only one call after the warm-up if its time exceeds `limit`.
    """
    jax.block_until_ready(function())
    times: list[float] = []
    while len(times) < repeats and min(times, default=0) < limit:
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return min(times)


def _on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"

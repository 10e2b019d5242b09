"""The values that a log has for the steps since the previous log: mean metrics, rates and times.

A step's metrics stay on the devices until they are logged or saved, so that no step waits for them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import State
from finetune_jax.training.step import Metrics

_ROWS = 16
"""Steps whose metrics are joined on the devices, because many small transfers take long."""

_MOST_JOINED = 64
"""Largest number of joined metrics that are kept on the devices."""

_BLOCK = 256
"""Steps whose learning rates are computed at once."""


@dataclasses.dataclass
class Interval:
    """The steps since the last log.

    The sums are of doubles in the order of the steps, and checkpoints hold them; so an interrupted
    run logs the values of an uninterrupted one.

    Attributes:
      sums: sums over the steps that were not skipped, by name of the metric.
      steps: number of steps.
      skipped: number of skipped steps; None where the run skips none.
      seconds: wall time of the steps, with the waiting for data and without evaluations.
    """

    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    steps: int = 0
    skipped: int | None = None
    seconds: float = 0.0
    _pending: list[Metrics] = dataclasses.field(default_factory=list)
    _joined: list[Metrics] = dataclasses.field(default_factory=list)
    _began: float | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Interval:
        """The inverse of `to_json`; a checkpoint of an older version has an empty object."""
        sums = {n: math.nan if x is None else x for n, x in values.get("sums", {}).items()}
        return cls(**{**values, "sums": sums})

    def start(self) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def pause(self) -> None:
        """Stops the clock until the next `start`, after the steps that were noted have ended."""
        self._fold()
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
        self._began = None

    def note(self, metrics: Metrics) -> None:
        """Remembers the metrics of a step without waiting for them."""
        self._pending.append(metrics)
        if len(self._pending) == _ROWS:
            self._joined.append(_join(self._pending))
            self._pending = []
        if len(self._joined) == _MOST_JOINED:
            self._fold()

    def means(self) -> dict[str, float]:
        """Means over the steps that were not skipped; ``skipped`` is the number of the others."""
        self._fold()
        count = self.steps - (self.skipped or 0)
        found = {name: x / count if count else math.nan for name, x in self.sums.items()}
        return found if self.skipped is None else {**found, "skipped": float(self.skipped)}

    def clear(self) -> None:
        """Begins the next interval; a running clock runs on."""
        self.sums, self.steps, self.skipped, self.seconds = {}, 0, None, 0.0

    def to_json(self) -> dict[str, Any]:
        """The attributes, for the meta data of a checkpoint."""
        self._fold()
        # JSON has no NaN.
        sums = {name: x if math.isfinite(x) else None for name, x in self.sums.items()}
        return {
            "sums": sums,
            "steps": self.steps,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }

    def _fold(self) -> None:
        joined, single = jax.device_get((self._joined, self._pending))
        self._joined, self._pending = [], []
        for metrics in joined:
            for row in zip(*(values.tolist() for values in metrics.values()), strict=True):
                self._add(dict(zip(metrics, row, strict=True)))
        for metrics in single:
            self._add({name: float(x) for name, x in metrics.items()})

    def _add(self, values: dict[str, float]) -> None:
        self.steps += 1
        if "skipped" in values:
            skipped = values.pop("skipped") > 0
            self.skipped = (self.skipped or 0) + skipped
            if skipped:
                values = dict.fromkeys(values, 0.0)
        for name, x in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + x


@jax.jit
def _join(rows: list[Metrics]) -> Metrics:
    """Arrays [rows] by name."""
    return jax.tree.map(lambda *values: jnp.stack(values), *rows)


def times_of(began: float, examples: int) -> dict[str, float]:
    """The metrics of `metrics_writer.TIMES` for examples that were scored.

    Args:
      began: `time.perf_counter` before the first example.
      examples: number of examples.
    """
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "examples_per_second": examples / max(seconds, 1e-9)}


class GroupRates:
    """Learning rates of the groups of a phase, for logs.

    Args:
      phase: the phase.
    """

    def __init__(self, phase: PhaseRun) -> None:
        self._phase = phase
        self._block: tuple[int, dict[str, np.ndarray]] | None = None
        self._factors = self._by_group({x.path: x.lr for x in phase.plan.leaves})

    def _by_group(self, factors: dict[str, float]) -> dict[str, list[float]]:
        """Lowest and highest factor of the leaves of each group."""
        found: dict[str, list[float]] = {}
        for leaf in self._phase.plan.leaves:
            if leaf.trains:
                found.setdefault(leaf.group, []).append(factors[leaf.path])
        return {name: [min(values), max(values)] for name, values in found.items()}

    def at(self, step: int, state: State) -> dict[str, float]:
        """``lr/GROUP`` of each group at a step of the run, counted from 0.

        Where the leaves of a group have different rates, ``lr/GROUP`` is the highest and
        ``lr_min/GROUP`` the lowest.

        Args:
          step: number of the step.
          state: state of the phase, read only where the scheme measures rates.
        """
        rates, plan = self._phase.optimizer.rates, self._phase.plan
        peak = rates.lr * self._phase.setup.config.optimizer.learning_rate
        number, place = divmod(step - rates.start, _BLOCK)
        if self._block is None or self._block[0] != number:
            steps = jnp.arange(_BLOCK, dtype=jnp.float32) + number * _BLOCK
            self._block = (
                number,
                {
                    name: np.broadcast_to(np.asarray(schedule(steps)), _BLOCK)
                    for name, schedule in rates.schedules.items()
                },
            )
        factors = self._factors
        if plan.measured:
            measured = tree.flatten(jax.device_get(state.hyper["leaf_lr"]))
            factors = self._by_group({path: float(x) for path, x in measured.items()})
        found: dict[str, float] = {}
        for name, table in self._block[1].items():
            (low, high), rate = factors[name], peak * float(table[place])
            found[f"lr/{name}"] = rate * high
            if low != high:
                found[f"lr_min/{name}"] = rate * low
        return found

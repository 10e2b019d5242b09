"""Caches that several runs share: decoded data, compiled programs, activations, frozen leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax

from finetune_jax.data.examples import Examples
from finetune_jax.tasks.teacher import Teacher
from finetune_jax.training.importance import GradientStep
from finetune_jax.training.state import CreateState, Frozen
from finetune_jax.training.step import FeatureStep

Key = TypeVar("Key")
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Values by key; each value is made when its key is first asked for."""

    def __init__(self) -> None:
        self._values: dict[Key, Value] = {}

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Returns the value of `key`, which `make` makes if the cache does not hold it yet."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]


@dataclasses.dataclass
class SharedCaches:
    """Caches shared by runs whose compiled programs are identical, such as the arms of an ablation.

    A single run has its own caches. `arms.structure` tells whether runs may share theirs.

    Attributes:
      arms: number of runs that share the caches.
      opened_splits: examples by split name (``train``, …), as the source reads them.
      decoded_splits: examples by split name, decoded into memory if they fit.
      said: remarks that one run has printed for all runs, by the topic of the remarks.
      teachers: loaded teacher by the path of its artifact.
      create_states: jitted `state.create` by number of the phase.
      train_steps: compiled train step by (number of the phase, whether its batches hold
        activations after the frozen prefix instead of inputs).
      eval_steps: compiled evaluation step; keys as for `train_steps`, and the structure of the
        variables, some of which may be quantized at the end of a run.
      feature_steps: jitted forward pass to the features that solvers and probes read, by number of
        the phase.
      gradients: jitted gradient that measured rates are computed from (`importance.make_gradient`),
        by number of the phase.
      activations: activations of a split after the frozen prefix, by a hash of all that the
        activations depend on (`prefix_cache`).
    """

    arms: int = 1
    opened_splits: Cache[str, Examples] = dataclasses.field(default_factory=Cache)
    decoded_splits: Cache[str, Examples] = dataclasses.field(default_factory=Cache)
    said: Cache[str, list[None]] = dataclasses.field(default_factory=Cache)
    teachers: Cache[str, Teacher] = dataclasses.field(default_factory=Cache)
    create_states: Cache[int, CreateState] = dataclasses.field(default_factory=Cache)
    train_steps: Cache[tuple[int, bool], jax.stages.Compiled] = dataclasses.field(
        default_factory=Cache
    )
    eval_steps: Cache[tuple[int, bool, Any], jax.stages.Compiled] = dataclasses.field(
        default_factory=Cache
    )
    feature_steps: Cache[int, FeatureStep] = dataclasses.field(default_factory=Cache)
    gradients: Cache[int, GradientStep] = dataclasses.field(default_factory=Cache)
    activations: Cache[str, Examples] = dataclasses.field(default_factory=Cache)
    _frozen_leaves: Cache[tuple[str, str, str], jax.Array] = dataclasses.field(
        default_factory=Cache
    )

    def deduplicate(self, frozen: Frozen, checksums: dict[str, str]) -> Frozen:
        """Replaces every frozen array that another arm already holds by that very array.

        Frozen leaves are then in memory once for all arms, and two arms share a leaf exactly if
        both hold the same array object.

        Args:
          frozen: frozen half, on devices.
          checksums: checksum of each leaf by its path, with ``params/`` or ``batch_stats/`` in
            front.

        Returns:
          `frozen` itself if there is a single run.
        """
        if self.arms == 1:
            return frozen

        def first_equal(path: str, leaf: jax.Array) -> jax.Array:
            key = (path, str(leaf.dtype), checksums[path])
            return self._frozen_leaves.get(key, lambda: leaf)

        return frozen.with_leaves({p: first_equal(p, x) for p, x in frozen.flat().items()})

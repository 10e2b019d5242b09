"""What arms of one structure make once and use together; a run by itself is the only arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from finetune_jax import tree
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.state import Frozen, State

T = TypeVar("T")


@dataclasses.dataclass
class Shared:
    """Decoded data, compiled programs, cached activations and frozen leaves.

    Attributes:
      arms: how many runs will use it.
    """

    arms: int = 1
    _made: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when `key` was first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def intern(self, base: Frozen, checksums: dict[str, str]) -> Frozen:
        """`base` with every array that another arm already holds replaced by that very array.

        So frozen leaves are in memory once however many arms there are, and whether two arms share
        a leaf is a question of identity.

        Args:
          base: on devices.
          checksums: by path, with the collection's name in front.
        """
        if self.arms == 1:
            return base

        def known(path: str, leaf: Any) -> Any:
            return self.once(("leaf", path, leaf.dtype, checksums[path]), lambda: leaf)

        whole = tree.map_with_path(known, {"params": base.params, "batch_stats": base.stats})
        return dataclasses.replace(
            base, params=whole.get("params", {}), stats=whole.get("batch_stats", {})
        )


@dataclasses.dataclass(frozen=True)
class StepCall:
    """An arm's next train step, which arms in lockstep may run as one program.

    Attributes:
      run: phase the arm is in.
      cached: whether the batch holds activations.
      step: compiled for one arm; donates the state.
      state: before the step.
      base: what the step only reads.
      batch: on the host.
      number: of the step within the run.
    """

    run: PhaseRun
    cached: bool
    step: Any
    state: State
    base: Frozen
    batch: dict[str, Any]
    number: int

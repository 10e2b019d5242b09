"""The values that a train step changes (`State`), and the values that it only reads (`Frozen`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from finetune_jax import tree
from finetune_jax.quantization import Format, is_weight, quantize_leaf
from finetune_jax.schemes import Plan


@flax.struct.dataclass
class State:
    """All values that training changes. The train step donates them; checkpoints hold them.

    Attributes:
      step: number of updates done, i32[].
      params: trainable half of the params, in f32.
      stats: tracked BatchNorm statistics.
      opt_state: optimizer state of the trainable half.
      ema: exponential moving average of ``params`` and ``stats`` (under keys of these names); empty
        when averaging is off.
      key: typed PRNG key of the run; each step folds its number into the key.
      hyper: `optimizer.hyper_parameters`: the numbers in which arms of an ablation may differ.
    """

    step: jax.Array
    params: dict[str, Any]
    stats: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any]
    key: jax.Array
    hyper: dict[str, Any]


@flax.struct.dataclass
class Frozen:
    """The frozen half. The train step neither returns nor donates it.

    Attributes:
      params: frozen leaves.
      stats: BatchNorm statistics that training keeps.
      anchor: pretrained values of trainable leaves that L2-SP pulls towards; empty without L2-SP.
      teacher: variables of the teacher (`finetune_jax.tasks.teacher.Teacher`); empty without a
        teacher.
    """

    params: dict[str, Any]
    stats: dict[str, Any]
    anchor: dict[str, Any]
    teacher: dict[str, Any] = flax.struct.field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Returns frozen leaves and kept statistics by path, with the collection in front."""
        return tree.flatten({"params": self.params, "batch_stats": self.stats})

    def leaves(self, paths: Collection[str]) -> dict[str, Any]:
        """Returns the entries of `flat` whose path is in `paths`."""
        return {path: leaf for path, leaf in self.flat().items() if path in paths}

    def with_leaves(self, leaves: dict[str, Any]) -> Frozen:
        """Returns a copy with some leaves replaced.

        Args:
          leaves: new leaves by path, with the collection in front.
        """
        variables = tree.unflatten({**self.flat(), **leaves})
        return dataclasses.replace(
            self, params=variables.get("params", {}), stats=variables.get("batch_stats", {})
        )

    def fingerprint(self, without: Collection[str]) -> str:
        """Returns the fingerprint of all leaves of `flat` but those whose path is in `without`."""
        rest = {path: leaf for path, leaf in self.flat().items() if path not in without}
        return tree.fingerprint(tree.unflatten(rest))


CreateState = Callable[
    [dict[str, Any], tree.Tree, dict[str, Any], int | jax.Array], tuple[State, Frozen]
]
"""Function of (variables, anchor, hyper, seed) to state and frozen half."""


def create(
    variables: dict[str, Any],
    plan: Plan,
    optimizer: optax.GradientTransformation,
    hyper: dict[str, Any],
    *,
    seed: int | jax.Array,
    ema: bool,
    frozen_dtype: jax.typing.DTypeLike | Format = jnp.float32,
    exact: Collection[str] = (),
    anchor: tree.Tree | None = None,
) -> tuple[State, Frozen]:
    """Splits loaded variables into the trainable half and the frozen half.

    Args:
      variables: ``{"params": …, "batch_stats": …}``.
      plan: plan that decides the halves.
      optimizer: transformation over the trainable half.
      hyper: `optimizer.hyper_parameters`.
      seed: seed of the run's PRNG key.
      ema: whether to keep an average of the trainable half.
      frozen_dtype: dtype in which frozen floating-point parameters are stored, or format of the
        frozen weights (`finetune_jax.quantization.is_weight`).
      exact: paths of frozen parameters that keep their dtype.
      anchor: values that L2-SP pulls towards, see `Frozen`.
    """
    trainable, frozen = plan.split(variables["params"])
    stats, kept = plan.split_statistics(variables["batch_stats"])
    # bf16 would lose small updates (1.0 + 1e-3 is 1.0), so trainable leaves are always f32.
    trainable = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), trainable)
    stats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), stats)
    state = State(
        step=jnp.zeros((), jnp.int32),
        params=trainable,
        stats=stats,
        opt_state=optimizer.init(trainable),
        # Copies, because the step donates its state and a buffer can be donated only once.
        ema=jax.tree.map(jnp.copy, {"params": trainable, "stats": stats}) if ema else {},
        key=jax.random.key(seed),
        hyper=jax.tree.map(jnp.asarray, hyper),
    )

    def store(path: str, x: jax.Array) -> Any:
        keeps = path in exact or not jnp.issubdtype(x.dtype, jnp.floating)
        if isinstance(frozen_dtype, Format):
            quantizes = not keeps and is_weight(path, x)
            return quantize_leaf(path, x, frozen_dtype) if quantizes else jnp.asarray(x)
        return jnp.asarray(x, None if keeps else frozen_dtype)

    frozen = tree.map_with_path(store, frozen)
    kept, anchored = jax.tree.map(jnp.asarray, (kept, anchor or {}))
    return state, Frozen(params=frozen, stats=kept, anchor=anchored)


def variables(state: State, frozen: Frozen, *, averaged: bool = True) -> dict[str, Any]:
    """Returns the variables of both halves, for `model.apply`.

    Args:
      state: the trainable half.
      frozen: the frozen half.
      averaged: whether to take the exponential moving average of the trainable half, if there is
        an average.
    """
    source = state.ema if averaged and state.ema else {"params": state.params, "stats": state.stats}
    return {
        "params": tree.merge(source["params"], frozen.params),
        "batch_stats": tree.merge(source["stats"], frozen.stats),
    }

"""What a step changes (`State`) and what it only reads (`Frozen`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from finetune_jax import tree
from finetune_jax.schemes import Plan


@flax.struct.dataclass
class State:
    """All that training changes: donated by the step, saved in checkpoints.

    Attributes:
      step: i32[], updates done.
      params: the trainable half, f32 masters.
      stats: tracked BatchNorm statistics.
      opt_state: of the trainable half.
      ema: average of ``params`` and ``stats`` (keys of those names), or empty when off.
      key: typed PRNG key of the run; each step folds its number in.
      hyper: `optimizer.hyper_parameters`: numbers that arms of an ablation may differ in.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    ema: Any
    key: jax.Array
    hyper: Any


@flax.struct.dataclass
class Frozen:
    """The frozen half: never returned, never donated.

    Attributes:
      params: frozen leaves.
      stats: kept BatchNorm statistics.
      anchor: pretrained values of trainable leaves that L2-SP pulls towards; empty without it.
      teacher: variables of `finetune_jax.training.teacher.Teacher`; empty without one.
    """

    params: Any
    stats: Any
    anchor: Any
    teacher: Any = flax.struct.field(default_factory=dict)


def create(
    variables: dict[str, Any],
    plan: Plan,
    optimizer: optax.GradientTransformation,
    hyper: dict[str, Any],
    *,
    seed: int | jax.Array,
    ema: bool,
    frozen_dtype: Any = jnp.float32,
    exact: Collection[str] = (),
    anchor: dict[str, Any] | None = None,
) -> tuple[State, Frozen]:
    """Splits loaded variables into what trains and what stays.

    Args:
      variables: ``{"params": …, "batch_stats": …}``.
      plan: decides the halves.
      optimizer: transformation over the trainable half.
      hyper: `optimizer.hyper_parameters`.
      seed: of the run's PRNG key.
      ema: whether to keep an average of the trainable half.
      frozen_dtype: storage of frozen floating-point parameters.
      exact: paths of frozen parameters that keep their dtype.
      anchor: for L2-SP, see `Frozen`.
    """
    trainable, frozen = plan.split(variables["params"])
    stats, kept = plan.split_statistics(variables["batch_stats"])
    # bf16 masters would swallow small updates (1.0 + 1e-3 is 1.0), so trainables are always f32.
    trainable = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), trainable)
    stats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), stats)
    state = State(
        step=jnp.zeros((), jnp.int32),
        params=trainable,
        stats=stats,
        opt_state=optimizer.init(trainable),
        # Copies, because the step donates its state and a buffer can be donated once only.
        ema=jax.tree.map(jnp.copy, {"params": trainable, "stats": stats}) if ema else {},
        key=jax.random.key(seed),
        hyper=jax.tree.map(jnp.asarray, hyper),
    )

    def store(path: str, x: Any) -> jax.Array:
        keeps = path in exact or not jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, None if keeps else frozen_dtype)

    frozen = tree.map_with_path(store, frozen)
    kept, anchor = jax.tree.map(jnp.asarray, (kept, anchor or {}))
    return state, Frozen(params=frozen, stats=kept, anchor=anchor)


def variables(state: State, base: Frozen, *, averaged: bool = True) -> dict[str, Any]:
    """Whole variables for `model.apply`: the averaged ones if there are any and `averaged`."""
    source = state.ema if averaged and state.ema else {"params": state.params, "stats": state.stats}
    return {
        "params": tree.merge(source["params"], base.params),
        "batch_stats": tree.merge(source["stats"], base.stats),
    }

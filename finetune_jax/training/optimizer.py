"""The gradient transformation of the trainable half, which never gets a frozen leaf.

Clipping, norms and moments therefore cover the trainable leaves and nothing else.
`optax.multi_transform` keeps the moments of each group. Learning rate and decay are per leaf and
come from the plan and from `State.hyper`, so that arms with other rates share one compiled step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from finetune_jax import tree
from finetune_jax.schemes import Phase, Plan
from finetune_jax.schemes.schedules import Schedule, parse_schedule


@dataclasses.dataclass(frozen=True)
class Rates:
    """Learning rate of every trainable leaf by step.

    Attributes:
      plan: plan of the phase, which gives the group of each leaf.
      schedules: schedule of each group by its name; schedules count the steps of the phase.
      start: step of the run at which the phase starts.
      lr: factor of the phase on the run's learning rate.
    """

    plan: Plan
    schedules: dict[str, Schedule]
    start: int
    lr: float

    def __call__(self, step: jax.Array, hyper: dict[str, Any]) -> dict[str, Any]:
        """Returns rates f32[] in the structure of the trainable half.

        Args:
          step: step of the run, i32[].
          hyper: `State.hyper`.
        """
        within = jnp.asarray(step - self.start, jnp.float32)
        peak = self.lr * hyper["learning_rate"]
        by_group = {name: schedule(within) * peak for name, schedule in self.schedules.items()}
        return jax.tree.map(
            lambda group, factor: by_group[group] * factor,
            self.plan.of_trainable("group"),
            hyper["leaf_lr"],
        )


def warmup_steps(config: ml_collections.ConfigDict, phase: Phase, start: int) -> dict[str, int]:
    """Returns the steps of warm-up that are asked for, by group; see `make_rates`."""
    default = phase.warmup
    if default is None:
        default = 0 if start else config.warmup_steps
    return {
        name: default if group.warmup is None else group.warmup
        for name, group in phase.plan.groups.items()
    }


def make_rates(config: ml_collections.ConfigDict, phase: Phase, start: int, steps: int) -> Rates:
    """Returns the learning rates of one phase.

    Args:
      config: ``config.optimizer``.
      phase: phase with its schedules and factors.
      start: step of the run at which the phase starts.
      steps: number of steps of the phase.
    """
    default = phase.schedule or config.schedule
    warmups = warmup_steps(config, phase, start)
    schedules = {
        name: parse_schedule(group.schedule or default, steps, warmups[name])
        for name, group in phase.plan.groups.items()
    }
    return Rates(phase.plan, schedules, start, phase.lr)


def hyper_parameters(
    config: ml_collections.ConfigDict, plan: Plan, label_smoothing: float = 0.0
) -> dict[str, Any]:
    """Returns the start value of `State.hyper`: numbers that the compiled step takes as inputs.

    Args:
      config: ``config.optimizer``.
      plan: plan of the phase.
      label_smoothing: in [0, 1).

    Returns:
      ``learning_rate``, ``weight_decay`` and ``label_smoothing``, each f32[], and ``leaf_lr``:
      factors f32[] on the learning rate in the structure of the trainable half.
    """

    def number(x: float) -> jax.Array:
        return jnp.asarray(x, jnp.float32)

    return {
        "learning_rate": number(config.learning_rate),
        "weight_decay": number(config.weight_decay),
        "label_smoothing": number(label_smoothing),
        "leaf_lr": jax.tree.map(number, plan.of_trainable("lr")),
    }


def make_optimizer(
    config: ml_collections.ConfigDict, rates: Rates, joined: Mapping[str, int] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation of the trainable half's gradients into updates.

    The method ``update`` of the transformation takes ``step`` i32[] and ``hyper`` (see
    `hyper_parameters`) beside the gradients. With SGD, weight decay is added to the gradient; with
    AdamW, weight decay is decoupled from the gradient.

    Args:
      config: ``config.optimizer``, with the values of the phase.
      rates: learning rates of the phase.
      joined: number of the phase in which each trainable leaf joined, by path; 0 where a path is
        missing. Leaves of one group that joined in different phases have separate step counts,
        because Adam's bias correction needs the number of updates of each leaf.
    """
    plan = rates.plan
    joined = joined or {}
    labels = {x.path: group_label(x.group, joined.get(x.path, 0)) for x in plan.leaves if x.trains}
    groups = optax.multi_transform(
        {name: _moments(config) for name in sorted({*labels.values()})}, tree.unflatten(labels)
    )
    decays = plan.of_trainable("decays")
    group_of = plan.of_trainable("group")

    def decay(updates: Any, params: Any, hyper: dict[str, Any]) -> Any:
        def add(update: jax.Array, param: jax.Array, applies: bool, group: str) -> jax.Array:
            of_group = plan.groups[group].decay
            strength = hyper["weight_decay"] if of_group is None else of_group
            return update + strength * param if applies else update

        return jax.tree.map(add, updates, params, decays, group_of)

    # Without decay in the config and in every group, the compiled step computes no decay.
    any_decay = bool(config.weight_decay) or any(g.decay for g in plan.groups.values())

    def update(
        gradients: Any, state: Any, params: Any, *, step: jax.Array, hyper: dict[str, Any]
    ) -> tuple[Any, Any]:
        if config.clip_norm:
            norm = optax.global_norm(gradients)
            factor = jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-16))
            gradients = jax.tree.map(lambda g: g * factor, gradients)
        if config.name == "sgd" and any_decay:
            gradients = decay(gradients, params, hyper)
        updates, state = groups.update(gradients, state, params)
        if config.name == "adamw" and any_decay:
            updates = decay(updates, params, hyper)
        rate = rates(step, hyper)
        return jax.tree.map(lambda u, r: -r * u, updates, rate), state

    return optax.GradientTransformationExtraArgs(groups.init, update)


def _moments(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The part of the optimizer that keeps moments, for one group."""
    if config.name == "adamw":
        return optax.scale_by_adam(config.b1, config.b2)
    return optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()


def group_label(group: str, phase: int) -> str:
    """Returns the `optax.multi_transform` label of the leaves of `group` that joined in `phase`."""
    return f"{group}@{phase}" if phase else group


def migrate(old: optax.OptState, new: optax.OptState, labels: Mapping[str, str]) -> optax.OptState:
    """Carries an optimizer state into the next phase, by leaf path.

    Args:
      old: concrete state of the phase before.
      new: fresh state of the next phase.
      labels: for each leaf that trained before and trains on, its path and its label in `old`.

    Returns:
      `new` with the moments and step counts of these leaves taken from `old`; the state of all
      other leaves stays fresh.
    """
    kept = {_address(path): value for path, value in jax.tree_util.tree_leaves_with_path(old)}
    old_label_of: dict[str, str] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(new):
        new_label, _, leaf = _address(path)
        if leaf in labels:
            old_label_of[new_label] = labels[leaf]

    def place(path: Any, value: jax.Array) -> jax.Array:
        new_label, field, leaf = _address(path)
        # A step count belongs to a group and has no leaf path.
        label = labels.get(leaf) if leaf else old_label_of.get(new_label)
        return value if label is None else kept.get((label, field, leaf), value)

    return jax.tree_util.tree_map_with_path(place, new)


def reached(opt_state: optax.OptState) -> set[str]:
    """Returns the paths of leaves whose moments are not all zero: a gradient has reached them.

    The set is empty for an optimizer without moments.
    """
    found: set[str] = set()
    for path, value in jax.tree_util.tree_leaves_with_path(opt_state):
        leaf = _address(path)[2]
        if leaf and leaf not in found and bool(jnp.any(value != 0)):
            found.add(leaf)
    return found


def _address(path: Any) -> tuple[str, str, str]:
    """(group label, field such as ``mu`` or ``count``, leaf path) of a leaf of the state."""
    # .inner_states['group'].inner_state.mu['block_0']['norm1']['scale']
    names = [(type(k).__name__, str(getattr(k, "key", getattr(k, "name", "")))) for k in path]
    group = next(name for kind, name in names if kind == "DictKey")
    fields = [i for i, (kind, _) in enumerate(names) if kind == "GetAttrKey"]
    last = fields[-1]
    return group, names[last][1], "/".join(name for _, name in names[last + 1 :])

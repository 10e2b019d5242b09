"""The gradient transformation of the trainable half, which never sees a frozen leaf.

Clipping, norms and moments therefore cover what trains and nothing else. `optax.multi_transform`
keeps the moments of each group; rates and decay are per leaf and come from the plan and from
`State.hyper`, so that arms with other rates share one compiled step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from finetune_jax import tree
from finetune_jax.schemes import Phase, Plan
from finetune_jax.schemes.schedules import Schedule, parse_schedule


@dataclasses.dataclass(frozen=True)
class Rates:
    """Learning rate of every trainable leaf by step.

    Attributes:
      plan: groups of the leaves.
      schedules: by group, of the step within the phase.
      start: step of the run at which the phase starts.
      lr: the phase's factor on the run's learning rate.
    """

    plan: Plan
    schedules: dict[str, Schedule]
    start: int
    lr: float

    def __call__(self, step: jax.Array, hyper: dict[str, Any]) -> dict[str, Any]:
        """Rates f32[] in the structure of the trainable half, at a step of the run."""
        within = jnp.asarray(step - self.start, jnp.float32)
        peak = self.lr * hyper["learning_rate"]
        by_group = {name: schedule(within) * peak for name, schedule in self.schedules.items()}
        return jax.tree.map(
            lambda group, factor: by_group[group] * factor,
            self.plan.of_trainable("group"),
            hyper["leaf_lr"],
        )


def make_rates(config: Any, phase: Phase, start: int, steps: int) -> Rates:
    """Rates of one phase.

    Args:
      config: ``config.optimizer``.
      phase: gives schedules and factors.
      start: first step of the phase.
      steps: its length.
    """
    default = phase.schedule or config.schedule
    warmup = phase.warmup
    if warmup is None:
        warmup = 0 if start else config.warmup_steps
    schedules = {
        name: parse_schedule(
            group.schedule or default, steps, warmup if group.warmup is None else group.warmup
        )
        for name, group in phase.plan.groups.items()
    }
    return Rates(phase.plan, schedules, start, phase.lr)


def hyper_parameters(config: Any, plan: Plan, label_smoothing: float = 0.0) -> dict[str, Any]:
    """What `State.hyper` starts with: numbers that are data to the compiled step.

    ``learning_rate``, ``weight_decay``, ``label_smoothing`` f32[], and ``leaf_lr``, factors f32[]
    in the structure of the trainable half.
    """
    number = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return {
        "learning_rate": number(config.learning_rate),
        "weight_decay": number(config.weight_decay),
        "label_smoothing": number(label_smoothing),
        "leaf_lr": jax.tree.map(number, plan.of_trainable("lr")),
    }


def make_optimizer(
    config: Any, rates: Rates, ages: Mapping[str, int] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation of the trainable half's gradients into updates.

    Its ``update`` takes ``step`` i32[] and ``hyper`` (see `hyper_parameters`) beside the gradients.
    SGD decays through the gradient, AdamW decoupled from it.

    Args:
      config: ``config.optimizer``.
      rates: of the phase.
      ages: phase in which each trainable leaf joined, by path. Leaves of one group that joined in
        different phases keep step counts of their own, as Adam's bias correction needs.
    """
    plan = rates.plan
    labels = {x.path: label(x.group, (ages or {}).get(x.path, 0)) for x in plan.leaves if x.trains}

    def moments() -> optax.GradientTransformation:
        if config.name == "adamw":
            return optax.scale_by_adam(config.b1, config.b2)
        return (
            optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
        )

    groups = optax.multi_transform(
        {name: moments() for name in sorted({*labels.values()})}, tree.unflatten(labels)
    )
    decays = plan.of_trainable("decays")
    group_of = plan.of_trainable("group")

    def decay(updates: Any, params: Any, hyper: dict[str, Any]) -> Any:
        def add(update: jax.Array, param: jax.Array, may: bool, group: str) -> jax.Array:
            own = plan.groups[group].decay
            strength = hyper["weight_decay"] if own is None else own
            return update + strength * param if may else update

        return jax.tree.map(add, updates, params, decays, group_of)

    # Without decay in the config and in every group, the compiled step holds none.
    none = not config.weight_decay and not any(g.decay for g in plan.groups.values())

    def update(
        gradients: Any, state: Any, params: Any, *, step: jax.Array, hyper: dict[str, Any]
    ) -> tuple[Any, Any]:
        if config.clip_norm:
            norm = optax.global_norm(gradients)
            factor = jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-16))
            gradients = jax.tree.map(lambda g: g * factor, gradients)
        if config.name == "sgd" and not none:
            gradients = decay(gradients, params, hyper)
        updates, state = groups.update(gradients, state, params)
        if config.name == "adamw" and not none:
            updates = decay(updates, params, hyper)
        rate = rates(step, hyper)
        return jax.tree.map(lambda u, r: -r * u, updates, rate), state

    return optax.GradientTransformationExtraArgs(groups.init, update)


def label(group: str, age: int) -> str:
    """Name of the `multi_transform` group of the leaves of `group` that joined in phase `age`."""
    return f"{group}@{age}" if age else group


def migrate(old: Any, new: Any, survivors: Sequence[str], ages: Mapping[str, str]) -> Any:
    """Carries an optimizer state into the next phase, by leaf path.

    Args:
      old: state of the phase before, concrete.
      new: fresh state of the next phase.
      survivors: paths that trained before and train on.
      ages: `multi_transform` label in `old` of each of the survivors.

    Returns:
      `new` with the survivors' moments and step counts in place; all else stays fresh.
    """
    kept = {}
    for path, value in jax.tree_util.tree_leaves_with_path(old):
        kept[_address(path)] = value
    labels = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(new):
        group, field, leaf = _address(path)
        if leaf in ages:
            labels[group] = ages[leaf]

    def place(path: Any, value: Any) -> Any:
        group, field, leaf = _address(path)
        if leaf:
            if leaf not in survivors:
                return value
            return kept.get((ages[leaf], field, leaf), value)
        return kept.get((labels.get(group), field, leaf), value)

    return jax.tree_util.tree_map_with_path(place, new)


def reached(opt_state: Any) -> set[str]:
    """Paths of the leaves with a moment that is not zero: those that a gradient has reached.

    Empty for an optimizer without moments.
    """
    found = set()
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

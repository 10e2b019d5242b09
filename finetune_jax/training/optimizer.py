"""The gradient transformation: one `optax.multi_transform` over the groups of the trainable half.

It never sees a frozen leaf, so clipping, norms and moments cover what trains and nothing else.
"""

from __future__ import annotations

from typing import Any

import optax

from finetune_jax.schemes import Group, Plan


def learning_rate_schedule(config: Any, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then constant, or down to 0.

    Args:
      config: ``config.optimizer``.
      total_steps: steps of the whole run, warm-up included.
    """
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps)
    rest = max(total_steps - warmup, 1)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(config: Any, plan: Plan, total_steps: int) -> optax.GradientTransformation:
    """Returns the transformation of the trainable half's gradients into updates.

    Args:
      config: ``config.optimizer``.
      plan: gives labels, rates and the decay mask.
      total_steps: length of the schedule.
    """
    schedule = learning_rate_schedule(config, total_steps)
    mask = plan.decay_mask()

    def group_transform(group: Group) -> optax.GradientTransformation:
        strength = config.weight_decay if group.decay is None else group.decay
        # The mask is a function because multi_transform hands each group a tree with holes.
        decay = optax.add_decayed_weights(strength, mask=lambda _: mask) if strength else None
        scale = optax.scale_by_learning_rate(lambda step: group.lr * schedule(step))
        if config.name == "adamw":
            chain = [optax.scale_by_adam(config.b1, config.b2), decay, scale]
        else:
            momentum = optax.trace(config.momentum, config.nesterov) if config.momentum else None
            chain = [decay, momentum, scale]
        return optax.chain(*(t for t in chain if t is not None))

    groups = optax.multi_transform(
        {name: group_transform(group) for name, group in plan.groups.items()}, plan.labels()
    )
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), groups)
    return groups

"""Learning rate schedules: a factor in [0, 1] on the peak rate for each step of a phase."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import parse

Schedule = Callable[[jax.Array], jax.Array]
"""Function from the step, f32[] or i32[], to the factor, f32[]; the first update has step 0."""


def constant(total: int) -> Schedule:
    """Stays at 1."""
    del total
    return lambda step: jnp.ones(())


def cosine(total: int) -> Schedule:
    """Falls from 1 to 0 along half a period of a cosine."""
    return lambda step: 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / total, 1.0)))


def linear(total: int) -> Schedule:
    """Falls from 1 to 0 along a line."""
    return lambda step: 1 - jnp.minimum(step / total, 1.0)


def onecycle(total: int, pct: float = 0.25, div: float = 25.0, final: float = 1e5) -> Schedule:
    """Rises from 1/div to 1, then falls to 1/final, both along cosines: fastai's one-cycle policy.

    Args:
      total: number of steps.
      pct: share of the steps that rise, in (0, 1).
      div: the first factor is 1/div; > 0.
      final: the last factor is 1/final; > 0.

    Raises:
      UserError: an argument is out of its range.
    """

    if not (0 < pct < 1 and div > 0 and final > 0):
        raise UserError(
            f"onecycle: expected pct in (0, 1), div > 0 and final > 0; found pct={pct!r}, "
            f"div={div!r}, final={final!r}"
        )

    def schedule(step: jax.Array) -> jax.Array:
        position = jnp.minimum(step / total, 1.0)
        up = 0.5 * (1 - jnp.cos(jnp.pi * jnp.minimum(position / pct, 1.0)))
        down = 0.5 * (1 - jnp.cos(jnp.pi * jnp.maximum(position - pct, 0.0) / (1 - pct)))
        rising, falling = 1 / div + (1 - 1 / div) * up, 1 + (1 / final - 1) * down
        return jnp.where(position < pct, rising, falling)

    return schedule


def slanted(total: int, cut: float = 0.1, ratio: float = 32.0) -> Schedule:
    """Rises from 1/ratio to 1, then falls to 1/ratio, along lines: ULMFiT, arXiv 1801.06146.

    The factor is (1 + p (ratio - 1)) / ratio, where p rises from 0 to 1 and falls back to 0.

    Args:
      total: number of steps.
      cut: share of the steps that rise, in (0, 1).
      ratio: the first and the last factor are 1/ratio; > 0.

    Raises:
      UserError: an argument is out of its range.
    """
    if not (0 < cut < 1 and ratio > 0):
        raise UserError(
            f"slanted: expected cut in (0, 1) and ratio > 0; found cut={cut!r}, ratio={ratio!r}"
        )
    corner = max(1, int(total * cut))

    def schedule(step: jax.Array) -> jax.Array:
        down = 1 - (step - corner) / (corner * (1 / cut - 1))
        p = jnp.clip(jnp.where(step < corner, step / corner, down), 0.0, 1.0)
        return (1 + p * (ratio - 1)) / ratio

    return schedule


SCHEDULES = {f.__name__: f for f in (constant, cosine, linear, onecycle, slanted)}


def parse_schedule(text: str, total: int, warmup: int = 0) -> Schedule:
    """Returns the schedule that a text names, after a linear warm-up from 0.

    Args:
      text: name of a schedule with its arguments, such as ``cosine`` or ``onecycle(pct=0.3)``.
      total: number of steps of the phase, warm-up included.
      warmup: number of steps of the warm-up; it ends at the last step at the latest.

    Raises:
      UserError: the name or the arguments are unknown.
    """
    terms = parse(text)
    if len(terms) != 1 or terms[0].name not in SCHEDULES:
        raise UserError(f"unknown schedule {text!r}.{nearest(terms[0].name, SCHEDULES)}")
    function, options = SCHEDULES[terms[0].name], dict(terms[0].kwargs)
    try:
        inspect.signature(function).bind(total, *terms[0].args, **options)
    except TypeError as error:
        raise UserError(f"schedule {text!r}: {error}") from None
    warmup = min(warmup, max(total - 1, 0))  # the rate is 0 at the first step of a warm-up
    try:
        after = function(max(total - warmup, 1), *terms[0].args, **options)
    except TypeError:  # text where a number belongs
        raise UserError(f"schedule {text!r}: expected numbers") from None
    if not warmup:
        return after
    return lambda step: jnp.where(step < warmup, step / warmup, after(step - warmup))

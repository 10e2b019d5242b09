"""Losses over classes, chosen by text: ``cross_entropy``, ``focal(gamma=2)``, …"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import parse

Loss = Callable[..., jax.Array]
"""(outputs, targets of the same shape, counts of each class or None) to a loss per example."""


def cross_entropy(logits: jax.Array, targets: jax.Array, counts: Any) -> jax.Array:
    """Softmax cross-entropy in nats, f32[b], against target shares f32[b, classes]."""
    del counts
    return optax.softmax_cross_entropy(logits, targets)


def focal(logits: jax.Array, targets: jax.Array, counts: Any, *, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy times (1 - p)^gamma of each class (Lin et al. 2017, arXiv 1708.02002).

    `gamma` is at least 0; 0 is the cross-entropy.
    """
    del counts
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * (1 - jnp.exp(log_p)) ** gamma * log_p, axis=-1)


def class_balanced(
    logits: jax.Array, targets: jax.Array, counts: Any, *, beta: float = 0.999
) -> jax.Array:
    """Cross-entropy weighted by (1 - beta) / (1 - beta^n_class) (Cui et al. 2019, arXiv 1901.05555).

    The weights of all classes sum to their number. `beta` is in [0, 1).
    """
    n = jnp.maximum(jnp.asarray(counts, jnp.float32), 1.0)
    weights = (1 - beta) / (1 - beta**n)
    weights = weights * len(counts) / weights.sum()
    return optax.softmax_cross_entropy(logits, targets * weights)


def binary(logits: jax.Array, targets: jax.Array, counts: Any) -> jax.Array:
    """Sigmoid cross-entropy, mean over the labels: f32[b] from f32[b, labels]."""
    del counts
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def binary_focal(
    logits: jax.Array, targets: jax.Array, counts: Any, *, gamma: float = 2.0
) -> jax.Array:
    """The focal loss of each label by itself (Lin et al. 2017), mean over the labels."""
    del counts
    return optax.sigmoid_focal_loss(logits, targets, gamma=gamma).mean(-1)


def squared(outputs: jax.Array, targets: jax.Array, counts: Any) -> jax.Array:
    """Squared error, mean over the values: f32[b] from f32[b, values]."""
    del counts
    return ((outputs - targets) ** 2).mean(-1)


def absolute(outputs: jax.Array, targets: jax.Array, counts: Any) -> jax.Array:
    """Absolute error, mean over the values."""
    del counts
    return jnp.abs(outputs - targets).mean(-1)


def huber(outputs: jax.Array, targets: jax.Array, counts: Any, *, delta: float = 1.0) -> jax.Array:
    """Squared up to `delta`, linear beyond (Huber 1964), mean over the values."""
    del counts
    return optax.huber_loss(outputs, targets, delta).mean(-1)


SINGLE = (cross_entropy, focal, class_balanced)
MULTI = (binary, binary_focal)
REAL = (squared, absolute, huber)


def parse_loss(text: str, known: tuple[Callable[..., Any], ...]) -> Loss:
    """The loss that ``config.task.loss`` names; the first known one if it is empty.

    Raises:
      UserError: an unknown name or argument.
    """
    losses: Mapping[str, Callable[..., Any]] = {f.__name__: f for f in known}
    if not text:
        return known[0]
    terms = parse(text)
    if len(terms) != 1 or terms[0].name not in losses:
        name = terms[0].name if len(terms) == 1 else text
        raise UserError(f"task.loss: unknown loss {name!r}.{nearest(name, losses)}")
    function, options = losses[terms[0].name], dict(terms[0].kwargs)
    try:
        inspect.signature(function).bind(None, None, None, *terms[0].args, **options)
    except TypeError as error:
        raise UserError(f"task.loss: {terms[0]}: {error}") from None
    return lambda outputs, targets, counts: function(outputs, targets, counts, **options)

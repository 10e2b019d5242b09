"""Training losses: softmax, sigmoid, real-valued and contrastive ones, and distillation.

Each is a function of (outputs, targets, given) to the loss of each example, f32[b]; keyword-only
parameters are the options that ``config.task.loss`` may set, as in ``focal(gamma=2)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Given = Mapping[str, Any]
"""What a loss may read beside outputs and targets: ``counts`` (training examples of each class),
``features`` f32[b, width] of the model, and, with a teacher, the teacher's logits ``teacher``
f32[b, classes] and its ``teacher_features`` f32[b, width of the teacher]."""

_TINY = 1e-7


def cross_entropy(logits: jax.Array, targets: jax.Array, given: Given) -> jax.Array:
    """Softmax cross-entropy in nats, f32[b], of target probabilities f32[b, classes]."""
    del given
    return optax.softmax_cross_entropy(logits, targets)


def focal(logits: jax.Array, targets: jax.Array, given: Given, *, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy times (1 - p)^gamma of each class (Lin et al. 2017, arXiv 1708.02002).

    `gamma` is at least 0; with gamma = 0 the loss is the cross-entropy.
    """
    del given
    log_p = jax.nn.log_softmax(logits)
    # The power has no finite derivative at 0 for gamma below 1.
    rest = jnp.maximum(-jnp.expm1(log_p), _TINY)
    return -jnp.sum(targets * rest**gamma * log_p, axis=-1)


def class_balanced(
    logits: jax.Array, targets: jax.Array, given: Given, *, beta: float = 0.999
) -> jax.Array:
    """Cross-entropy weighted by (1 - beta) / (1 - beta^n) (Cui et al. 2019, arXiv 1901.05555).

    The weights are scaled so that their sum is the number of classes. `beta` is in [0, 1).
    ``given["counts"]`` has n, the number of training examples, for each class; a class without
    examples has the weight of a class with one example.
    """
    counts = np.maximum(np.asarray(given["counts"], np.float64), 1)
    weights = (1 - beta) / (1 - beta**counts)
    weights *= len(counts) / weights.sum()
    return optax.softmax_cross_entropy(logits, targets * weights.astype(np.float32))


def distill(
    logits: jax.Array,
    targets: jax.Array,
    given: Given,
    *,
    teacher: str,
    temperature: float = 2.0,
    alpha: float = 0.5,
) -> jax.Array:
    """alpha T² KL(teacher || student), both at temperature T, + (1 - alpha) cross-entropy.

    Hinton et al. 2015, arXiv 1503.02531. `teacher` is the folder of an artifact, `alpha` is in
    [0, 1], and the temperature T is above 0.
    """
    del teacher
    soft = jax.nn.softmax(given["teacher"] / temperature)
    divergence = optax.kl_divergence(jax.nn.log_softmax(logits / temperature), soft)
    hard = optax.softmax_cross_entropy(logits, targets)
    return alpha * temperature**2 * divergence + (1 - alpha) * hard


def distill_features(
    logits: jax.Array, targets: jax.Array, given: Given, *, teacher: str, weight: float = 3000.0
) -> jax.Array:
    """Cross-entropy + `weight` times the similarity-preserving distillation loss.

    Tung and Mori 2019, arXiv 1907.09682, whose weight is 3000. For the student and for the teacher,
    the inner products of the features of all pairs in the batch form a matrix, whose rows are
    scaled to length 1; the loss is the mean square of the difference of the two matrices. The two
    models may have features of different widths. `weight` is at least 0.
    """
    del teacher
    own, other = (
        _unit(x @ x.T)
        for x in (given["features"], jax.lax.stop_gradient(given["teacher_features"]))
    )
    apart = jnp.sum((own - other) ** 2, axis=-1) / len(own)
    return optax.softmax_cross_entropy(logits, targets) + weight * apart


def _unit(x: jax.Array) -> jax.Array:
    # The square root has no finite derivative at 0.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), _TINY**2))


def binary(logits: jax.Array, targets: jax.Array, given: Given) -> jax.Array:
    """Sigmoid cross-entropy, mean over the labels: f32[b] from f32[b, labels].

    A target is 0, 1 or, for an unknown label, negative. The mean is over the known labels.
    """
    del given
    return _mean_of_known(optax.sigmoid_binary_cross_entropy(logits, targets), targets)


def binary_focal(
    logits: jax.Array,
    targets: jax.Array,
    given: Given,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> jax.Array:
    """The focal loss of each label separately (Lin et al. 2017), mean over the labels: f32[b].

    Targets are those of `binary`. With `alpha` in [0, 1], positive labels have the weight alpha and
    negative labels 1 - alpha; RetinaNet's is 0.25. Without, both have the weight 1.
    """
    del given
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    p = jax.nn.sigmoid(logits)
    rest = jnp.maximum(jnp.abs(targets - p), _TINY)
    weights = 1.0 if alpha is None else alpha * targets + (1 - alpha) * (1 - targets)
    return _mean_of_known(weights * losses * rest**gamma, targets)


def _mean_of_known(losses: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean f32[b] of the losses f32[b, labels] whose target is known; 0 where none is."""
    known = targets >= 0
    share = jnp.maximum(known.sum(-1), 1) / losses.shape[-1]
    # Where all labels are known, the share is 1 and changes no bit.
    return jnp.where(known, losses, 0).mean(-1) / share


def squared(outputs: jax.Array, targets: jax.Array, given: Given) -> jax.Array:
    """Squared error, mean over the values: f32[b] from f32[b, values]."""
    del given
    return ((outputs - targets) ** 2).mean(-1)


def absolute(outputs: jax.Array, targets: jax.Array, given: Given) -> jax.Array:
    """Absolute error, mean over the values: f32[b] from f32[b, values]."""
    del given
    return jnp.abs(outputs - targets).mean(-1)


def huber(outputs: jax.Array, targets: jax.Array, given: Given, *, delta: float = 1.0) -> jax.Array:
    """Huber's loss (1964): half the square of errors up to `delta`, linear above; mean over values.

    `delta` is above 0.
    """
    del given
    return optax.huber_loss(outputs, targets, delta=delta).mean(-1)


def contrast(embeddings: jax.Array, groups: jax.Array, temperature: float) -> jax.Array:
    """Contrastive loss: each embedding should be nearest to the embeddings of its group.

    With groups of two views of one image, the loss is NT-Xent (Chen et al. 2020, arXiv 2002.05709);
    with classes as groups, it is the supervised contrastive loss L_out (Khosla et al. 2020, arXiv
    2004.11362).

    Args:
      embeddings: f32[n, width]; their norms do not matter.
      groups: i32[n], the group of each embedding; an embedding that is alone in its group has loss
        0.
      temperature: divisor of the cosines, above 0.

    Returns:
      f32[n]: -log softmax over all other embeddings, mean over the others of the same group.
    """
    unit = _unit(embeddings)
    own = jnp.eye(len(unit), dtype=bool)
    logits = jnp.where(own, -jnp.inf, unit @ unit.T / temperature)
    log_p = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    partner = (groups[:, None] == groups) & ~own
    total = jnp.sum(jnp.where(partner, -log_p, 0.0), axis=-1)
    return total / jnp.maximum(partner.sum(-1), 1)


SINGLE = (cross_entropy, focal, class_balanced, distill, distill_features)
"""Losses of one class per example."""

MULTI = (binary, binary_focal)
"""Losses of several labels per example."""

REAL = (squared, absolute, huber)
"""Losses of real values."""

"""Losses chosen by text: ``cross_entropy``, ``focal(gamma=2)``, ``distill(teacher='runs/x')``, …"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import parse

Given = Mapping[str, Any]
"""What a loss may read beside outputs and targets: ``counts`` of the classes, ``features``
f32[b, width] of the model, and of a teacher ``teacher`` f32[b, classes] (its logits) and
``teacher_features`` f32[b, its width]."""

_TINY = 1e-7


def cross_entropy(logits: jax.Array, targets: jax.Array, given: Given) -> jax.Array:
    """Softmax cross-entropy in nats, f32[b], against target shares f32[b, classes]."""
    del given
    return optax.softmax_cross_entropy(logits, targets)


def focal(logits: jax.Array, targets: jax.Array, given: Given, *, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy times (1 - p)^gamma of each class (Lin et al. 2017, arXiv 1708.02002).

    `gamma` is at least 0; 0 is the cross-entropy.
    """
    del given
    log_p = jax.nn.log_softmax(logits)
    # The power has no finite slope at 0 for gamma below 1.
    rest = jnp.maximum(-jnp.expm1(log_p), _TINY)
    return -jnp.sum(targets * rest**gamma * log_p, axis=-1)


def class_balanced(
    logits: jax.Array, targets: jax.Array, given: Given, *, beta: float = 0.999
) -> jax.Array:
    """Cross-entropy weighted by (1 - beta) / (1 - beta^n) (Cui et al. 2019, arXiv 1901.05555).

    The weights of the classes sum to their number. `beta` is in [0, 1); ``given["counts"]`` has n
    of each class, and one without examples weighs as if it had one.
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

    Hinton et al. 2015, arXiv 1503.02531. `teacher` is an artifact's folder, `alpha` in [0, 1].
    """
    del teacher
    soft = jax.nn.softmax(given["teacher"] / temperature)
    divergence = optax.kl_divergence(jax.nn.log_softmax(logits / temperature), soft)
    hard = optax.softmax_cross_entropy(logits, targets)
    return alpha * temperature**2 * divergence + (1 - alpha) * hard


def distill_features(
    logits: jax.Array, targets: jax.Array, given: Given, *, teacher: str, weight: float = 3000.0
) -> jax.Array:
    """Cross-entropy + `weight` times how differently student and teacher see the batch's likeness.

    Similarity-preserving distillation (Tung and Mori 2019, arXiv 1907.09682; 3000 is theirs): mean
    square over pairs of the difference of the two matrices of inner products of features, rows of
    length 1. It asks nothing of the widths of the two models. `weight` is at least 0.
    """
    del teacher
    own, other = (
        _unit(x @ x.T)
        for x in (given["features"], jax.lax.stop_gradient(given["teacher_features"]))
    )
    apart = jnp.sum((own - other) ** 2, axis=-1) / len(own)
    return optax.softmax_cross_entropy(logits, targets) + weight * apart


def _unit(x: jax.Array) -> jax.Array:
    # The square root has no finite slope at 0.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), _TINY**2))


def binary(logits: jax.Array, targets: jax.Array, given: Given) -> jax.Array:
    """Sigmoid cross-entropy, mean over the labels: f32[b] from f32[b, labels]."""
    del given
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def binary_focal(
    logits: jax.Array, targets: jax.Array, given: Given, *, gamma: float = 2.0
) -> jax.Array:
    """The focal loss of each label by itself (Lin et al. 2017), mean over the labels."""
    del given
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    p = jax.nn.sigmoid(logits)
    rest = jnp.maximum(jnp.abs(targets - p), _TINY)
    return (losses * rest**gamma).mean(-1)


def squared(outputs: jax.Array, targets: jax.Array, given: Given) -> jax.Array:
    """Squared error, mean over the values: f32[b] from f32[b, values]."""
    del given
    return ((outputs - targets) ** 2).mean(-1)


def absolute(outputs: jax.Array, targets: jax.Array, given: Given) -> jax.Array:
    """Absolute error, mean over the values."""
    del given
    return jnp.abs(outputs - targets).mean(-1)


def huber(outputs: jax.Array, targets: jax.Array, given: Given, *, delta: float = 1.0) -> jax.Array:
    """Half the square up to `delta`, linear beyond (Huber 1964), mean over the values."""
    del given
    return optax.huber_loss(outputs, targets, delta=delta).mean(-1)


def contrast(embeddings: jax.Array, groups: jax.Array, temperature: float) -> jax.Array:
    """Each embedding against all others; those of its group should be nearest.

    With groups of two views of one image it is NT-Xent (Chen et al. 2020, arXiv 2002.05709), with
    classes the supervised contrastive loss, L_out (Khosla et al. 2020, arXiv 2004.11362).

    Args:
      embeddings: f32[n, width], of any length.
      groups: i32[n]; one that is alone in its group has loss 0.
      temperature: of the cosines, above 0.

    Returns:
      f32[n]: mean over the others of the group of -log softmax over all others.
    """
    unit = _unit(embeddings)
    own = jnp.eye(len(unit), dtype=bool)
    logits = jnp.where(own, -jnp.inf, unit @ unit.T / temperature)
    log_p = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    partner = (groups[:, None] == groups) & ~own
    total = jnp.sum(jnp.where(partner, -log_p, 0.0), axis=-1)
    return total / jnp.maximum(partner.sum(-1), 1)


SINGLE = (cross_entropy, focal, class_balanced, distill, distill_features)
MULTI = (binary, binary_focal)
REAL = (squared, absolute, huber)

# Open and closed ends of what options may be, by name.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "gamma": (">= 0", lambda x: x >= 0),
    "beta": ("in [0, 1)", lambda x: 0 <= x < 1),
    "temperature": ("> 0", lambda x: x > 0),
    "alpha": ("in [0, 1]", lambda x: 0 <= x <= 1),
    "weight": (">= 0", lambda x: x >= 0),
    "delta": ("> 0", lambda x: x > 0),
    "mask": ("in (0, 1)", lambda x: 0 < x < 1),
    "width": (">= 1", lambda x: x >= 1),
    "hidden": (">= 0", lambda x: x >= 0),
    "depth": (">= 0", lambda x: x >= 0),
    "heads": (">= 1", lambda x: x >= 1),
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss with its options.

    Attributes:
      function: of (outputs, targets, given) and the options, to a loss per example.
      options: all of them, defaults included.
    """

    function: Callable[..., jax.Array]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """As in ``config.task.loss``."""
        return self.function.__name__

    def __call__(
        self, outputs: jax.Array, targets: jax.Array, given: Given | None = None
    ) -> jax.Array:
        return self.function(outputs, targets, given or {}, **self.options)


def parse_loss(text: str, known: tuple[Callable[..., Any], ...]) -> Objective:
    """The loss that ``config.task.loss`` names; the first known one if it is empty.

    Raises:
      UserError: an unknown name or argument, or a value out of range.
    """
    losses: Mapping[str, Callable[..., Any]] = {f.__name__: f for f in known}
    terms = parse(text or known[0].__name__)
    if len(terms) != 1 or terms[0].name not in losses:
        name = terms[0].name if len(terms) == 1 else text
        raise UserError(f"task.loss: unknown loss {name!r}.{nearest(name, losses)}")
    function, options = losses[terms[0].name], dict(terms[0].kwargs)
    signature = inspect.signature(function)
    own = {n: p for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in options:
        if name not in own:
            hint = nearest(name, own) if own else " It takes none."
            raise UserError(f"task.loss: {terms[0]}: unknown argument {name!r}.{hint}")
    try:
        signature.bind(None, None, None, *terms[0].args, **options)
    except TypeError as error:
        named = ", ".join(f"{n}=…" for n in own)
        raise UserError(
            f"task.loss: {terms[0]}: {error}; write {function.__name__}({named})"
        ) from None
    whole = {n: options.get(n, p.default) for n, p in own.items()}
    for name, value in whole.items():
        _check(str(terms[0]), name, value, own[name].default)
    return Objective(function, whole)


def _check(term: str, name: str, value: Any, default: Any) -> None:
    if name not in _RANGES:
        if not isinstance(value, bool if isinstance(default, bool) else str):
            wanted = "True or False" if isinstance(default, bool) else "a text"
            raise UserError(f"task.loss: {term}: expected {wanted} as {name}, found {value!r}")
        return
    wanted, allowed = _RANGES[name]
    whole = isinstance(default, int)
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not allowed(value):
        kind = "a whole number" if whole else "a number"
        raise UserError(f"task.loss: {term}: expected {kind} {wanted} as {name}, found {value!r}")


def mixed(loss: Callable[[jax.Array], jax.Array], batch: Mapping[str, Any]) -> jax.Array:
    """The loss of a batch whose examples may be blends of two, as mixup and CutMix make them.

    Args:
      loss: of the targets ``label`` or ``label2``, f32[b].
      batch: where images were mixed it has ``label2``, like ``label`` the target of what was mixed
        in, and ``mix`` f32[b], the share of the first (arXiv 1710.09412, 1905.04899).
    """
    first = loss(batch["label"])
    if "mix" not in batch:
        return first
    return batch["mix"] * first + (1 - batch["mix"]) * loss(batch["label2"])

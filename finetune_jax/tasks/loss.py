"""Parses the text of ``config.task.loss``: a loss of a task, or a function of another package.

A loss of another package is named by its import path, as in ``my_package:my_loss(gamma=2)``. It is
a function ``my_loss(outputs, targets, given, *, gamma=2.0)`` with the arguments of our own losses
(`finetune_jax.tasks.objectives`): the model's outputs, the targets as the task prepares them, and
`Given`. It returns the loss of each example, f32[batch]. Its keyword-only parameters are the
options that the text may set; the function itself has to check their ranges.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from finetune_jax.doors import is_door, open_door
from finetune_jax.errors import UserError, about, nearest
from finetune_jax.grammar import Call, parse
from finetune_jax.tasks.objectives import Given

LossFunction = Callable[..., jax.Array]
"""A function of (outputs, targets, given, *, options) to the loss of each example, f32[batch]."""

# Valid values of the options of our own losses: the text of a message, and the test.
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
      function: function of (outputs, targets, given) and the options to the loss of each example.
      options: values of all options by name, the defaults included.
    """

    function: LossFunction
    options: dict[str, Any]

    def __call__(
        self, outputs: jax.Array, targets: jax.Array, given: Given | None = None
    ) -> jax.Array:
        return self.function(outputs, targets, given or {}, **self.options)


def parse_loss(text: str, known: tuple[LossFunction, ...]) -> Objective:
    """Returns the loss that ``config.task.loss`` names.

    Args:
      text: name of a loss and its options, such as ``focal(gamma=2)``; empty for the first of
        `known`.
      known: the losses that the task has.

    Raises:
      UserError: an unknown name or option, or a value out of range.
    """
    losses = {function.__name__: function for function in known}
    terms = _terms(text or known[0].__name__)
    if len(terms) != 1 or not (terms[0].name in losses or is_door(terms[0].name)):
        name = terms[0].name if len(terms) == 1 else text
        raise UserError(
            f"task.loss: unknown loss {name!r}.{nearest(name, losses)} A loss of another package "
            f"is named package.module:name."
        )
    term = terms[0]
    if term.name in losses:
        return _bind(term, losses[term.name], check=True)
    function = open_door(term.name, "task.loss", object)
    if not callable(function):
        found = type(function).__name__
        raise UserError(f"task.loss: {term.name!r}: expected a function, found {found}")
    return _bind(term, function, check=False)


def door_of(text: str) -> str:
    """The ``package.module:name`` in the text of a loss; empty for one of our own losses."""
    return next((term.name for term in _terms(text) if is_door(term.name)), "") if text else ""


def _terms(text: str) -> tuple[Call, ...]:
    with about("task.loss"):
        return tuple(parse(text))


def _bind(term: Call, function: LossFunction, *, check: bool) -> Objective:
    """The objective of a function with the options that a term gives."""
    options, signature = dict(term.kwargs), inspect.signature(function)
    valid = {n: p for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in options:
        if name not in valid:
            hint = nearest(name, valid) if valid else " It takes none."
            raise UserError(f"task.loss: {term}: unknown argument {name!r}.{hint}")
    try:
        signature.bind(None, None, None, *term.args, **options)
    except TypeError as error:
        written = ", ".join(f"{n}=…" for n in valid)
        raise UserError(f"task.loss: {term}: {error}; write {term.name}({written})") from None
    values = {n: options.get(n, p.default) for n, p in valid.items()}
    for name, value in values.items() if check else ():
        if value is not None:  # only a default
            _check(str(term), name, value, valid[name].default)
    return Objective(function, values)


def _check(term: str, name: str, value: Any, default: Any) -> None:
    if name not in _RANGES:
        if not isinstance(value, bool if isinstance(default, bool) else str):
            expected = "True or False" if isinstance(default, bool) else "a text"
            raise UserError(f"task.loss: {term}: expected {expected} as {name}, found {value!r}")
        return
    valid, allowed = _RANGES[name]
    integer = isinstance(default, int)
    number = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not allowed(value):
        kind = "a whole number" if integer else "a number"
        raise UserError(f"task.loss: {term}: expected {kind} {valid} as {name}, found {value!r}")


def mixed(loss: Callable[[jax.Array], jax.Array], batch: Mapping[str, Any]) -> jax.Array:
    """The loss f32[b] of a batch in which mixup or CutMix may have mixed pairs of images.

    Args:
      loss: function of targets (``label`` or ``label2`` of the batch) to losses f32[b].
      batch: where images were mixed, the batch has ``label2``, the targets of the images that were
        mixed in, and ``mix`` f32[b], the share of each image that is its own (arXiv 1710.09412,
        1905.04899).
    """
    first = loss(batch["label"])
    if "mix" not in batch:
        return first
    return batch["mix"] * first + (1 - batch["mix"]) * loss(batch["label2"])

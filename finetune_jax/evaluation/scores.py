"""Scores of a split: every example once, with an interval."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.data.batches import Encode, eval_batches, gather
from finetune_jax.data.examples import Examples
from finetune_jax.data.naming import example_name
from finetune_jax.errors import UserError
from finetune_jax.metrics import names
from finetune_jax.progress import each
from finetune_jax.tasks import Task

_LONG = 1.0  # seconds of an evaluation without a bar


class NonFinitePredictions(UserError):
    """Predictions that hold NaN or infinity; the text has their number and the first example."""


def require_finite(outputs: Any, names: Callable[[int], str] = "example {}".format) -> None:
    """Refuses outputs of a model that are not finite.

    Args:
      outputs: tree of arrays [n, …], such as what a task observes.
      names: function from the number of an example to its name, for the message.

    Raises:
      NonFinitePredictions: an array holds NaN or infinity.
    """
    leaves = [np.asarray(x) for x in jax.tree.leaves(outputs)]
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact) and len(x)]
    if not floats:
        return
    good = np.all([np.isfinite(x).reshape(len(x), -1).all(1) for x in floats], axis=0)
    if not good.all():
        first = names(int(np.argmin(good)))
        raise NonFinitePredictions(
            f"the model's outputs are NaN or infinite for {int((~good).sum())} of {len(good)} "
            f"examples, the first is {first}; they are not scored"
        )


def observe(
    eval_step: Callable[..., Any],
    variables: Any,
    examples: Examples,
    encode: Encode,
    *,
    batch_size: int,
    place: Callable[[Any], Any],
    workers: int = 0,
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Observes every example of a split exactly once; padding is removed.

    Args:
      eval_step: compiled function of (variables, batch) to what the task observes.
      variables: all variables of the model.
      examples: the split.
      encode: makes the arrays of a batch from an example.
      batch_size: batch size of the compiled step.
      place: puts a host batch on devices.
      workers: worker processes that read and decode; 0 for none.
      rows: rows of each batch that this process reads and `place` puts; None for all rows.

    Returns:
      What the task observes: arrays [n, …] by name, in the order of the split.

    Raises:
      RuntimeError: not every example was observed exactly once.
      NonFinitePredictions: something observed is NaN or infinite.
    """
    parts = []
    batches = eval_batches(examples, encode, batch_size, workers, rows)
    count = math.ceil(len(examples) / batch_size)
    for batch in each(batches, "evaluating", total=count, delay=_LONG):
        real = batch.pop("mask") > 0
        result = eval_step(variables, place(batch))
        parts.append(jax.tree.map(lambda x, real=real: tree.on_host(x)[real], result))
    observed: dict[str, np.ndarray] = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    for name, values in observed.items():
        if len(values) != len(examples):
            raise RuntimeError(f"{name}: observed {len(values)} of {len(examples)} examples")
    require_finite(observed, functools.partial(example_name, examples))
    return observed


def forward_all(
    forward: Callable[[Any], Any],
    examples: Examples,
    encode: Encode,
    *,
    batch_size: int,
    place: Callable[[Any], Any],
    indices: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> Any:
    """Calls a function on batches of examples and joins the outputs.

    Args:
      forward: function of a placed batch to a tree of outputs [batch_size, …].
      examples: the split.
      encode: makes the arrays of a batch from an example.
      batch_size: examples per call; the last batch is padded with its first example.
      place: puts a host batch on devices.
      indices: numbers i64[n] of the examples; None for all examples.
      rows: rows of each batch that this process reads and `place` puts; None for all rows.

    Returns:
      A tree of outputs [n, …] without the padding, in the order of `indices`.

    Raises:
      NonFinitePredictions: an output is NaN or infinite.
    """
    indices = np.arange(len(examples)) if indices is None else indices
    rows = np.arange(batch_size) if rows is None else rows
    parts = []
    starts = range(0, len(indices), batch_size)
    for start in each(starts, "computing features", delay=_LONG):
        some = indices[start : start + batch_size]
        padded = np.concatenate([some, np.repeat(some[:1], batch_size - len(some))])
        out = forward(place(gather(examples, padded[rows], encode)))
        real = slice(len(some))
        parts.append(jax.tree.map(lambda x, real=real: tree.on_host(x)[real], out))
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    require_finite(joined, lambda i: example_name(examples, int(indices[i])))
    return joined


def evaluate(task: Task, *args: Any, **options: Any) -> dict[str, Any]:
    """Scores a split.

    Args:
      task: the task.
      *args: arguments of `observe`.
      **options: arguments of `observe`.

    Returns:
      ``task.scores`` of what `observe` returns, and ``n_scored``, the number of examples.
    """
    observed = observe(*args, **options)
    return {**task.scores(observed), "n_scored": len(next(iter(observed.values())))}


def headline(metric: str, scores: dict[str, Any]) -> str:
    """A score as text, with its interval: ``accuracy 91.3 % [90.7, 91.8], n=10,000``."""
    name, examples = names.named(metric).name, f"n={scores['n_scored']:,}"
    value = scores[metric]
    if value is None or not math.isfinite(value):
        return f"{name} undefined, {examples}"
    ends = (scores.get(f"{metric}_{end}") for end in ("low", "high"))
    return f"{name} {names.with_interval(metric, value, *ends)}, {examples}"

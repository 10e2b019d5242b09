"""What a user of an exported model has to know: its inputs, its outputs and its classes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.artifact import Artifact
from finetune_jax.data.preprocess import ImagePreprocess


def describe(artifact: Artifact) -> dict[str, Any]:
    """A description as plain JSON values.

    Returns:
      ``task``; ``classes``, their names in the order of the outputs, empty for a task without
      classes; ``inputs`` and ``outputs``, a text by name that has dtype, shape and meaning; and
      ``preprocess``, the settings of the preprocessing, without the content of a tokenizer.
    """
    task, preprocess = artifact.task, artifact.preprocess
    settings = preprocess.to_json()
    settings.pop("tokenizer", None)
    rows = jax.ShapeDtypeStruct((task.views, *_tail(artifact)), jnp.float32)
    numbers = jax.eval_shape(task.numbers, rows)
    if isinstance(preprocess, ImagePreprocess):
        views = ", 2" if len(preprocess.columns) == 2 else ""
        inputs = {"image": f"uint8[b{views}, height, width, 3], RGB, of any height and width"}
    else:
        inputs = {
            name: f"{x.dtype}[{', '.join(('b', *map(str, x.shape[1:])))}], from tokenizer.json"
            for name, x in preprocess.abstract(1).items()
        }
    outputs = {"outputs": f"float32{_shape(rows)}, before any softmax"}
    outputs |= {name: f"{x.dtype}{_shape(x)}" for name, x in numbers.items()}
    return {
        "task": task.name,
        "classes": list(task.class_names),
        "inputs": inputs,
        "outputs": outputs,
        "preprocess": settings,
    }


def _tail(artifact: Artifact) -> tuple[int, ...]:
    """Shape of the outputs of one input."""
    preprocess = artifact.preprocess
    batch = preprocess.abstract(1)
    found = jax.eval_shape(
        lambda v, x: artifact.model.apply(v, preprocess.device(x)), artifact.variables, batch
    )
    return tuple(found.shape[1:])


def _shape(x: Any) -> str:
    first = "b" if x.shape[0] == 1 else f"{x.shape[0]} * b"
    return "[" + ", ".join((first, *map(str, x.shape[1:]))) + "]"

"""Compares an exported model with the model that it came from, on real examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from finetune_jax.artifact import Artifact
from finetune_jax.data.examples import Examples
from finetune_jax.data.images import resize
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.errors import UserError
from finetune_jax.export.formats import Batch, Outputs
from finetune_jax.progress import each

FILE = "agreement.json"
BATCH_SIZES = (1, 7, 64)
"""Batch sizes that are compared. All examples are in batches of the largest size."""

TOLERANCE = {jnp.dtype("float32"): 1e-4, jnp.dtype("bfloat16"): 0.05}
"""Largest accepted difference of an output by the model's dtype, where outputs are of size 1.

Larger outputs may differ by more in the same proportion.
"""

_BATCHES = 5
"""Number of batches of the smaller sizes."""


def compare(artifact: Artifact, outputs: Outputs, examples: Examples) -> dict[str, Any]:
    """Compares outputs for the same examples, in batches of each size of `BATCH_SIZES`.

    Images that have different sizes are resized before they are put into one batch; in batches of
    one image, the exported model gets the image as it is.

    Args:
      artifact: the model that was exported.
      outputs: the outputs of the exported model.
      examples: examples as a data source has them, by column; at least one.

    Returns:
      ``examples``, their number; ``argmax_agreement``, the share of examples with the same answer,
      None for a task without answers; ``max_abs_difference`` of an output and
      ``largest_output``; ``tolerance``, the largest difference that is accepted; and
      ``batch_sizes``.

    Raises:
      UserError: an exported model with outputs of another shape, or that are not finite.
    """
    preprocess, task = artifact.preprocess, artifact.task
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    for size in each(BATCH_SIZES, "comparing"):
        count = len(examples) if size == BATCH_SIZES[-1] else min(len(examples), _BATCHES * size)
        for start in range(0, count, size):
            some = [examples[i] for i in range(start, min(start + size, count))]
            found = np.asarray(outputs(_raw(preprocess, some)))
            ready = [preprocess.host(example) for example in some]
            batch = {name: np.stack([x[name] for x in ready]) for name in ready[0]}
            expected = artifact.outputs(batch)
            if found.shape != expected.shape:
                raise UserError(
                    f"the exported model has outputs of the shape {found.shape} for a batch of "
                    f"{len(some)}; expected {expected.shape}"
                )
            ours.append(expected.astype(np.float32))
            theirs.append(found.astype(np.float32))
    one, other = np.concatenate(ours), np.concatenate(theirs)
    if not np.isfinite(other).all():
        raise UserError("the exported model has outputs that are NaN or infinite")
    largest = float(np.abs(one).max())
    same = [a == b for a, b in zip(*map(_answers(task), (one, other)), strict=True)]
    dtype = jnp.dtype(artifact.model.model.dtype)
    return {
        "examples": len(examples),
        "argmax_agreement": sum(same) / len(same) if same else None,
        "max_abs_difference": float(np.abs(one - other).max()),
        "largest_output": largest,
        "tolerance": TOLERANCE.get(dtype, TOLERANCE[jnp.dtype("bfloat16")]) * max(1.0, largest),
        "batch_sizes": list(BATCH_SIZES),
    }


def require_agreement(found: dict[str, Any]) -> None:
    """Raises UserError for a result of `compare` beyond its tolerance."""
    if found["max_abs_difference"] > found["tolerance"]:
        answers = found["argmax_agreement"]
        share = "" if answers is None else f", and {answers:.2%} of the answers are the same"
        raise UserError(
            f"the exported model is another model: on {found['examples']} examples an output "
            f"differs by {found['max_abs_difference']:.3g}, more than {found['tolerance']:.3g}"
            f"{share}; nothing is written"
        )


def _answers(task: Any) -> Any:
    """Function of outputs to the answers that the task reads from them; none without labels."""

    def answers(outputs: np.ndarray) -> list[Any]:
        read = [{**r}.get("label", {**r}.get("labels")) for r in task.read(outputs)]
        return [answer for answer in read if answer is not None]

    return answers


def _raw(preprocess: Any, examples: Sequence[dict[str, Any]]) -> Batch:
    """The batch that a user of the exported model would make from examples."""
    if not isinstance(preprocess, ImagePreprocess):
        ready = [preprocess.host(example) for example in examples]
        return {name: np.stack([x[name] for x in ready]) for name in ready[0]}
    columns = preprocess.columns
    images = [[np.asarray(example[column]) for column in columns] for example in examples]
    if len({image.shape for pair in images for image in pair}) > 1:
        resized = [[_resized(preprocess, x) for x in pair] for pair in images]
        images = resized
    batch = np.stack([np.stack(pair) for pair in images])
    return {"image": batch if len(columns) == 2 else batch[:, 0]}


def _resized(preprocess: ImagePreprocess, image: np.ndarray) -> np.ndarray:
    return resize(image, preprocess.size, preprocess.interpolation, preprocess.crop)

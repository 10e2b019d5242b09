"""Checks by BatchNorm statistics whether a network computes what its weights were trained for.

Names and shapes of tensors do not show strides, padding, activations, pooling, the epsilon of a
norm, or the range of the inputs. The stored statistics show an error in any of them, because they
are the means and variances of the norms' inputs in training. Where a network computes something
else, the statistics of real images differ from the stored statistics from the first wrong stage on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.errors import UserError
from finetune_jax.models import StagedModel, build, entry_of, initial_variables
from finetune_jax.pretrained import Selection, load
from finetune_jax.pretrained.sources import resolve
from finetune_jax.progress import each
from finetune_jax.tables import table

MOST_SHIFT, MOST_RATIO = 0.22, 0.6
"""Largest `StageFit.shift` and `StageFit.ratio` of a stage that counts as right."""

_BATCH = 16


@dataclasses.dataclass(frozen=True)
class StageFit:
    """How far the statistics of images are from the stored statistics of a stage.

    Attributes:
      stage: name of the stage.
      shift: |mean of the images - stored mean| / stored standard deviation, mean over the channels
        of all norms of the stage.
      ratio: |log(variance of the images / stored variance)|, mean over the same channels. The
        epsilon of the norm is added to both variances.
    """

    stage: str
    shift: float
    ratio: float

    @property
    def fits(self) -> bool:
        """Whether both numbers are as small as for a network that fits the weights."""
        return self.shift <= MOST_SHIFT and self.ratio <= MOST_RATIO


def check_statistics(
    model: StagedModel,
    variables: dict[str, Any],
    batches: Iterable[Any],
    prepare: Callable[[Any], Any] = lambda batch: batch,
) -> list[StageFit]:
    """Compares the stored statistics of every norm with those of images.

    Args:
      model: model without recomputation (``remat``).
      variables: variables of the model, with ``batch_stats``.
      batches: batches of inputs, such as the kind of images that the model was trained on. Some
        dozens of images are enough.
      prepare: makes the model's input from a batch, on device.

    Returns:
      The stages with BatchNorm, from input to output.

    Raises:
      UserError: the model has no BatchNorm, or there are no images.
    """
    stored = variables.get("batch_stats")
    if not stored:
        raise UserError("the model has no BatchNorm, so it has no statistics to compare")
    epsilons: dict[str, float] = {}

    @jax.jit
    def moments(batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        """By path of a norm: means of its inputs and of their squares, f32[channels]."""
        found = {}

        def listen(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
                x = args[0].astype(jnp.float32)
                axes = tuple(range(x.ndim - 1))
                path = "/".join(context.module.path)
                epsilons[path] = context.module.epsilon
                found[path] = (x.mean(axes), (x * x).mean(axes))
            return call(*args, **kwargs)

        with nn.intercept_methods(listen):
            model.apply(variables, prepare(batch))
        return found

    sums: dict[str, np.ndarray] = {}
    count = 0
    for batch in batches:
        size = len(jax.tree.leaves(batch)[0])
        for path, pair in moments(batch).items():
            sums[path] = sums.get(path, 0) + size * np.stack(pair).astype(np.float64)
        count += size
    if not count:
        raise UserError("there are no images to compare statistics with")
    stages: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    flat = tree.flatten(stored)
    for path in sorted(sums, key=lambda p: model.stages.index(p.split("/")[0])):
        mean, square = sums[path] / count
        old_mean, old_var = (np.float64(flat[f"{path}/{name}"]) for name in ("mean", "var"))
        epsilon = epsilons[path]
        shift = np.abs(mean - old_mean) / np.sqrt(old_var + epsilon)
        ratio = np.abs(np.log((np.maximum(square - mean**2, 0) + epsilon) / (old_var + epsilon)))
        stages.setdefault(path.split("/")[0], []).append((shift, ratio))
    return [
        StageFit(stage, *(float(np.mean(np.concatenate(x))) for x in zip(*norms, strict=True)))
        for stage, norms in stages.items()
    ]


def check_file(
    source: str,
    name: str,
    images: Sequence[Path],
    selection: Selection = Selection(),  # noqa: B008  # immutable
) -> list[StageFit]:
    """`check_statistics` of a weight file for a registered model.

    Args:
      source: weight file, as ``pretrained.path``.
      name: name of a registered model that fits the file.
      images: image files, which are prepared as the registry says for this model.
      selection: as in `pretrained.load`.

    Raises:
      UserError: the model has no BatchNorm, the file does not fit, or an image cannot be read.
    """
    entry = entry_of(name)
    inputs = entry.inputs
    model = build(name, max(entry.classes, 1), image_size=inputs.size)
    initial = initial_variables(model, inputs.size, stages=("head",))
    path = resolve(source)
    variables, _ = load(path, entry.family, initial, reinitialise_head=True, selection=selection)
    preprocess = ImagePreprocess(**vars(inputs))
    read = [preprocess.host(preprocess.read(path)) for path in each(images, "images")]
    batches = [
        {key: np.stack([item[key] for item in read[i : i + _BATCH]]) for key in read[0]}
        for i in range(0, len(read), _BATCH)
    ]
    return check_statistics(model, variables, batches, preprocess.device)


def verdict(fits: list[StageFit]) -> str:
    """A table of the stages, and the first stage that computes something else, if there is one."""
    rows = [[f.stage, f"{f.shift:.3f}", f"{f.ratio:.3f}", "" if f.fits else "<-"] for f in fits]
    text = table(["stage", "shift of means", "|log ratio| of variances", ""], rows)
    wrong = next((f.stage for f in fits if not f.fits), "")
    if not wrong:
        return f"{text}\n\nthe statistics of the images fit those of the file in every stage"
    return (
        f"{text}\n\nWARNING: from the stage {wrong} on, the statistics of the images are not those "
        f"of the file. The model may have other strides, padding, activations, pooling or epsilon "
        f"than the network of the file; or the images are prepared in another way, or are of "
        f"another kind"
    )

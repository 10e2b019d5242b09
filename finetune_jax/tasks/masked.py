"""Masked pre-training of Vision Transformers, which learn to reconstruct hidden patches.

The leaves of the encoder can be loaded into the plain model (``pretrained.path=DIR/artifact``,
``pretrained.new_head=True``), without the decoder and the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.metrics.intervals import bootstrap
from finetune_jax.models import StagedModel
from finetune_jax.models.pretraining import masked_autoencoder, patch_order, patches_of, visible
from finetune_jax.tasks.base import Batch, Task
from finetune_jax.tasks.loss import Objective, parse_loss
from finetune_jax.tasks.objectives import Given


def masked(
    outputs: jax.Array,
    targets: jax.Array,
    given: Given,
    *,
    mask: float = 0.75,
    normalise: bool = True,
    width: int = 128,
    depth: int = 1,
    heads: int = 4,
) -> jax.Array:
    """Mean square error over the hidden patches (arXiv 2111.06377): f32[b] from f32[b, n, values].

    `mask` is the share of patches that is hidden. With `normalise`, each target patch is shifted
    and scaled to mean 0 and variance 1. `width`, `depth` and `heads` are those of the decoder.
    ``given["order"]`` i32[b, n] has the numbers of the patches, hidden patches last.
    """
    del width, depth, heads
    if normalise:
        mean, variance = targets.mean(-1, keepdims=True), targets.var(-1, keepdims=True)
        targets = (targets - mean) * jax.lax.rsqrt(variance + 1e-6)
    count = outputs.shape[1]
    seen = visible(count, mask)
    hidden = jnp.argsort(given["order"], axis=1) >= seen
    errors = jnp.mean((outputs - targets) ** 2, axis=-1)
    return jnp.sum(errors * hidden, axis=1) / (count - seen)


@dataclasses.dataclass(frozen=True)
class MaskedPixels(Task):
    """Masked autoencoder (He et al. 2021).

    Attributes:
      size: side of the images in pixels.
      loss: text of the training loss, `masked` with its options; empty for the default options.
    """

    size: int
    loss: str = ""

    name = "mae"
    metric = "loss"
    better = "min"
    random_inputs = True

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> MaskedPixels:
        del source
        if preprocess.kind != "image":
            raise UserError(f"task.name: mae needs images, not {preprocess.kind}")
        parse_loss(settings.loss, (masked,))
        return cls(preprocess.size, settings.loss)

    @property
    def _objective(self) -> Objective:
        return parse_loss(self.loss, (masked,))

    @property
    def head_size(self) -> int:
        """1, which no code uses: in `adapt`, the head gets one output per value of a patch."""
        return 1

    def adapt(self, model: StagedModel) -> StagedModel:
        names = ("mask", "width", "depth", "heads")
        options = {name: self._objective.options[name] for name in names}
        return masked_autoencoder(model, self.size, **options)

    def inputs(
        self, key: jax.Array, draw: Callable[[jax.Array], tuple[Any, Batch]]
    ) -> tuple[Any, Batch]:
        """The augmented images, and the PRNG key by which the model and the loss hide patches."""
        augment_key, mask_key = jax.random.split(key)
        images, _ = draw(augment_key)
        return {"image": images, "key": mask_key}, {"pixels": images, "mask_key": mask_key}

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        del example
        return {}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        del count
        return {}

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """``loss`` f32[b].

        Args:
          outputs: f32[b, patches, 3 * patch²].
          batch: the batch that `inputs` returns.
          hyper: unused.
        """
        del hyper
        count, patches = outputs.shape[:2]
        order = patch_order(batch["mask_key"], count, patches)
        targets = patches_of(batch["pixels"], patches)
        return {"loss": self._objective(outputs, targets, {"order": order})}

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return self.per_example(outputs, batch)

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``loss``, the mean over the images."""
        return {"loss": float(observed["loss"].mean(dtype=np.float64))}

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores`, and the bootstrap interval of ``loss`` over images."""
        losses = observed["loss"].astype(np.float64)
        low, high = bootstrap(lambda i: losses[i].mean(), len(losses))
        return {**self.scores(observed), "loss_low": low, "loss_high": high}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """``{"patches": [[float, …], …]}``: the reconstructed patches, when no patch is hidden."""
        return [{"patches": rows.tolist()} for rows in np.asarray(outputs, np.float64)]

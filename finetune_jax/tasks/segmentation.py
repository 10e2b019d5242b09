"""Semantic segmentation: a class for every pixel, from the last feature map of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from finetune_jax.data.images import resize
from finetune_jax.data.preprocess import ImagePreprocess, Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.metrics.classification import per_class
from finetune_jax.metrics.intervals import bootstrap
from finetune_jax.metrics.segmentation import iou, mean_iou
from finetune_jax.models import StagedModel
from finetune_jax.models.dense import per_place
from finetune_jax.tasks.base import Batch, ClassTask, one_class, scores_by_class
from finetune_jax.tasks.classification import require_classes

VOID = 255
"""Label of pixels that are ignored by losses and scores."""


@dataclasses.dataclass(frozen=True)
class Segmentation(ClassTask):
    """One class per pixel; the logits of the head are resized to the size of the image.

    In an example, ``mask`` is uint8[height, width], the class number of each pixel, or 255 for an
    ignored pixel.

    Attributes:
      class_names: names of the classes, in label order.
      size: side of the preprocessed images in pixels.
      crop: crop of the images, see `finetune_jax.data.images.resize`; masks are cropped alike.
      neck: width of a 3x3 convolution before the head; 0 for a linear head.
    """

    size: int
    crop: float = 0.0
    neck: int = 0

    name = "segmentation"
    metric = "mean_iou"

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> Segmentation:
        names = require_classes(source, settings)
        if preprocess.kind != "image" or not isinstance(preprocess, ImagePreprocess):
            raise UserError(f"task.name: segmentation needs images, not {preprocess.kind}")
        if settings.loss:
            raise UserError(
                f"task.loss: segmentation has one loss only; expected '', found {settings.loss!r}"
            )
        if len(names) > VOID:
            raise UserError(f"task.name: masks hold {VOID} classes at most, not {len(names)}")
        return cls(names, preprocess.size, preprocess.crop, settings.neck)

    def adapt(self, model: StagedModel) -> StagedModel:
        return per_place(model, self.size, self.neck)

    def degenerate(self, targets: dict[str, np.ndarray]) -> str:
        classes = np.setdiff1d(targets["class_map"], [VOID])
        if not len(classes):
            return f"all pixels of all masks are ignored ({VOID})"
        return one_class(classes, self.class_names)

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        mask = np.asarray(example["mask"])
        mask = mask[..., 0] if mask.ndim == 3 and mask.shape[-1] == 1 else mask
        expected = np.shape(example.get("image", mask))[:2]
        if mask.ndim != 2 or mask.shape != expected:
            raise UserError(
                f"mask of shape {mask.shape}: expected one class number per pixel, shape {expected}"
            )
        wrong = np.setdiff1d(mask, [*range(self.head_size), VOID])
        if len(wrong):
            raise UserError(
                f"mask: expected class numbers from 0 to {self.head_size - 1}, and {VOID} for "
                f"ignored pixels, found {wrong[:5].tolist()}"
            )
        mask = mask.astype(np.uint8)
        # `resize` reads three channels.
        resized = resize(np.repeat(mask[..., None], 3, -1), self.size, "nearest", self.crop)
        return {"class_map": resized[..., 0]}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"class_map": jax.ShapeDtypeStruct((count, self.size, self.size), jnp.uint8)}

    def _enlarged(self, outputs: jax.Array) -> jax.Array:
        shape = (outputs.shape[0], self.size, self.size, outputs.shape[-1])
        return jax.image.resize(outputs, shape, "bilinear")

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """``loss`` and ``accuracy`` f32[batch]: means over the pixels that are not ignored.

        Args:
          outputs: logits f32[batch, rows, columns, classes].
          batch: ``class_map`` uint8[batch, size, size].
          hyper: unused.

        Raises:
          UserError: the images were mixed.
        """
        del hyper
        if "mix" in batch:
            raise UserError("data.augment: mixed images have no mask; remove mixup and cutmix")
        logits, mask = self._enlarged(outputs), batch["class_map"]
        counted = (mask != VOID).astype(jnp.float32)
        labels = jnp.where(mask == VOID, 0, mask).astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
        pixels = jnp.maximum(counted.sum((1, 2)), 1.0)
        return {
            "loss": (losses * counted).sum((1, 2)) / pixels,
            "accuracy": (right * counted).sum((1, 2)) / pixels,
        }

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """``table`` i32[batch, classes, classes], and the arrays of `per_example`.

        A table has the number of pixels by label (rows) and prediction (columns).
        """
        predicted = jnp.argmax(self._enlarged(outputs), -1)
        # The product with the number of classes would overflow uint8.
        mask = batch["class_map"].astype(jnp.int32)
        classes = self.head_size
        cells = jnp.where(mask == VOID, classes**2, mask * classes + predicted)
        count = jax.vmap(lambda x: jnp.bincount(x.ravel(), length=classes**2 + 1))
        table = count(cells)[:, : classes**2]
        return {
            "table": table.reshape(-1, classes, classes),
            **self.per_example(outputs, batch),
        }

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``mean_iou`` and ``accuracy`` over all pixels; ``loss``, the mean over images."""
        table = observed["table"].sum(0, dtype=np.int64)
        return {
            "mean_iou": mean_iou(table),
            "accuracy": float(np.trace(table) / max(table.sum(), 1)),
            "loss": float(observed["loss"].mean(dtype=np.float64)),
        }

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores`, and the bootstrap interval of ``mean_iou`` over images."""
        table = observed["table"].astype(np.int64)
        low, high = bootstrap(lambda i: mean_iou(table[i].sum(0)), len(table))
        return {**self.scores(observed), "mean_iou_low": low, "mean_iou_high": high}

    def per_class(self, observed: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """``n`` pixels, ``iou``, ``precision`` and ``recall`` of each class, over all images."""
        table = observed["table"].sum(0, dtype=np.int64)
        each = per_class(table)
        found = {"n": each["n"], "iou": iou(table)}
        return scores_by_class(
            self.class_names, found | {name: each[name] for name in ("precision", "recall")}
        )

    def numbers(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """``classes`` i32[n, size, size]: the number of the class of each pixel."""
        return {"classes": self._enlarged(outputs).argmax(-1).astype(jnp.int32)}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """``shares``: the share of the image that each class covers, in falling order."""
        results = []
        for grid in np.asarray(self._enlarged(jnp.asarray(outputs))).argmax(-1):
            shares = np.bincount(grid.ravel(), minlength=self.head_size) / grid.size
            order = np.argsort(-shares, kind="stable")
            results.append({"shares": {self.class_names[i]: float(shares[i]) for i in order}})
        return results

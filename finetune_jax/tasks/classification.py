"""Single-label classification: softmax cross-entropy, accuracy, class probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.metrics.intervals import wilson
from finetune_jax.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One class of several.

    Attributes:
      class_names: in label order.
    """

    class_names: tuple[str, ...]

    name = "classification"
    metric = "accuracy"

    @classmethod
    def create(cls, settings: Any, source: Source) -> Classification:
        names = source.class_names
        if not names:
            raise UserError(f"task.name: {source.name!r} has no classes to tell apart")
        if settings.num_classes not in (0, len(names)):
            raise UserError(
                f"task.num_classes: the head would have {settings.num_classes} classes, but "
                f"{source.name!r} has {len(names)}: {', '.join(names[:12])}"
            )
        return cls(names)

    @property
    def head_size(self) -> int:
        return len(self.class_names)

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"label": np.asarray(example["label"], np.int32)}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((count,), jnp.int32)}

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """Loss and correctness of each example.

        Args:
          outputs: logits f32[batch, classes].
          batch: ``label`` i32[batch].
          hyper: ``label_smoothing``: share of the target spread evenly over all classes, in [0, 1).

        Returns:
          ``loss`` f32[batch] in nats, without label smoothing's constant removed; ``accuracy``
          f32[batch], 0 or 1.
        """
        one_hot = jax.nn.one_hot(batch["label"], self.head_size)
        targets = optax.smooth_labels(one_hot, (hyper or {}).get("label_smoothing", 0.0))
        return {
            "loss": optax.softmax_cross_entropy(outputs, targets),
            "accuracy": (jnp.argmax(outputs, -1) == batch["label"]).astype(jnp.float32),
        }

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"logits": outputs, "label": batch["label"], **self.per_example(outputs, batch)}

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``accuracy`` with its Wilson interval, ``loss``: mean cross-entropy in nats."""
        correct = observed["accuracy"]
        low, high = wilson(int(correct.sum()), len(correct))
        return {
            "accuracy": float(correct.mean(dtype=np.float64)),
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": float(observed["loss"].mean(dtype=np.float64)),
        }

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """One dict per row of logits f32[n, classes]: class names by falling probability."""
        shifted = np.asarray(outputs, np.float64) - np.max(outputs, axis=-1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
        results = []
        for row in probabilities:
            order = np.argsort(-row, kind="stable")
            results.append(
                {
                    "label": self.class_names[order[0]],
                    "probabilities": {self.class_names[i]: float(row[i]) for i in order},
                }
            )
        return results

"""Single-label classification: softmax cross-entropy, accuracy, class probabilities."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class Classification:
    """A task value: head size, loss, metrics and how a prediction reads.

    Attributes:
      class_names: in label order.
    """

    class_names: tuple[str, ...]

    @property
    def head_size(self) -> int:
        """Rows of the head."""
        return len(self.class_names)

    def per_example(
        self,
        logits: jax.Array,
        batch: dict[str, jax.Array],
        label_smoothing: jax.Array | float = 0.0,
    ) -> dict[str, jax.Array]:
        """Loss and correctness of each example.

        Smoothing is a means of training: it has to be asked for, so that every score is the plain
        cross-entropy, whatever the run trained with.

        Args:
          logits: f32[batch, classes].
          batch: ``label`` i32[batch].
          label_smoothing: share of the target spread evenly over all classes, in [0, 1).

        Returns:
          ``loss`` f32[batch] in nats, without label smoothing's constant removed; ``accuracy``
          f32[batch], 0 or 1.
        """
        one_hot = jax.nn.one_hot(batch["label"], self.head_size)
        targets = optax.smooth_labels(one_hot, label_smoothing)
        return {
            "loss": optax.softmax_cross_entropy(logits, targets),
            "accuracy": (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32),
        }

    def read(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """One dict per row of logits f32[n, classes]: class names by falling probability."""
        shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
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

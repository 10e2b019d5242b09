"""Ordinal regression: classes have an order, and an error is the distance between two classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.metrics.classification import confusion, per_class
from finetune_jax.metrics.intervals import bootstrap
from finetune_jax.metrics.ordinal import weighted_kappa
from finetune_jax.tasks.base import Batch, ClassTask, one_class, scores_by_class
from finetune_jax.tasks.classification import class_number, require_classes
from finetune_jax.tasks.loss import mixed


@dataclasses.dataclass(frozen=True)
class Ordinal(ClassTask):
    """One class per example, of classes that have an order.

    Output k is the logit of the probability that the class is above class k; the predicted class is
    the number of positive outputs (Niu et al. 2016, Ordinal regression with multiple output CNN).

    Attributes:
      class_names: names of the classes, in order.
    """

    name = "ordinal"
    labels = "class"
    metric = "kappa"

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> Ordinal:
        names = require_classes(source, settings)
        if len(names) < 2:
            raise UserError(
                f"task.name: {source.name!r} has one class, and ordinal needs at least two"
            )
        if settings.loss:
            raise UserError(
                f"task.loss: ordinal has one loss only; expected '', found {settings.loss!r}"
            )
        return cls(names)

    @property
    def head_size(self) -> int:
        return len(self.class_names) - 1

    def degenerate(self, targets: dict[str, np.ndarray]) -> str:
        return one_class(targets["label"], self.class_names)

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"label": np.asarray(class_number(example["label"], self.class_names), np.int32)}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((count,), jnp.int32)}

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """``loss`` f32[batch], sigmoid cross-entropy summed over the outputs, and ``error``.

        ``error`` f32[batch] is the distance between the predicted class and the label.

        Args:
          outputs: logits f32[batch, classes - 1].
          batch: ``label`` i32[batch], and what `finetune_jax.tasks.loss.mixed` reads.
          hyper: unused.
        """
        del hyper

        def loss(labels: jax.Array) -> jax.Array:
            above = (labels[:, None] > jnp.arange(self.head_size)).astype(jnp.float32)
            return optax.sigmoid_binary_cross_entropy(outputs, above).sum(-1)

        predicted = jnp.sum(outputs > 0, axis=-1)
        return {
            "loss": mixed(loss, batch),
            "error": jnp.abs(predicted - batch["label"]).astype(jnp.float32),
        }

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {
            "predicted": jnp.sum(outputs > 0, axis=-1),
            "label": batch["label"],
            **self.per_example(outputs, batch),
        }

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``kappa`` with quadratic weights, ``mae`` in classes, ``accuracy``, ``loss``."""
        table = confusion(observed["predicted"], observed["label"], len(self.class_names))
        return {
            "kappa": weighted_kappa(table),
            "mae": float(observed["error"].mean(dtype=np.float64)),
            "accuracy": float((observed["error"] == 0).mean()),
            "loss": float(observed["loss"].mean(dtype=np.float64)),
        }

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores`, and the bootstrap interval of ``kappa``."""
        predicted, labels = observed["predicted"], observed["label"]
        low, high = bootstrap(
            lambda i: weighted_kappa(confusion(predicted[i], labels[i], len(self.class_names))),
            len(labels),
        )
        return {**self.scores(observed), "kappa_low": low, "kappa_high": high}

    def per_class(self, observed: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """``n``, ``precision``, ``recall`` and ``f1`` of each class."""
        table = confusion(observed["predicted"], observed["label"], len(self.class_names))
        return scores_by_class(self.class_names, per_class(table))

    def correct(self, observed: dict[str, np.ndarray]) -> np.ndarray:
        return observed["error"] == 0

    def numbers(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """``above`` f32[n, classes - 1]: the probability of a class above each but the last."""
        return {"above": jax.nn.sigmoid(outputs.astype(jnp.float32))}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """``label``, and ``above``: per class but the last, the probability of a higher class."""
        results = []
        for row in np.asarray(outputs, np.float64):
            above = 1 / (1 + np.exp(-row))
            names = self.class_names[:-1]
            results.append(
                {
                    "label": self.class_names[int((row > 0).sum())],
                    "above": dict(zip(names, above.tolist(), strict=True)),
                }
            )
        return results

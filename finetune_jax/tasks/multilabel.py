"""Multi-label classification: an example may have any number of labels."""

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
from finetune_jax.metrics import classification as metrics
from finetune_jax.metrics.intervals import bootstrap
from finetune_jax.tasks.base import Batch, ClassTask
from finetune_jax.tasks.classification import class_number, mean_over_classes, require_classes
from finetune_jax.tasks.loss import door_of, parse_loss
from finetune_jax.tasks.objectives import MULTI


@dataclasses.dataclass(frozen=True)
class MultiLabel(ClassTask):
    """Any number of labels per example.

    In an example, ``label`` is the number or the name of a label, or a list of numbers or names, or
    an array with a 0 or 1 for each label, in which nan is an unknown label. In a batch an unknown
    label is -1. The loss and the scores leave unknown labels out.

    Attributes:
      class_names: names of the labels, in order.
      loss: text of the training loss, one of `finetune_jax.tasks.objectives.MULTI`; empty for
        sigmoid cross-entropy.
    """

    loss: str = ""

    name = "multilabel"
    labels = "classes"
    metric = "average_precision"

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> MultiLabel:
        parse_loss(settings.loss, MULTI)
        if source.unknown and door_of(settings.loss):
            raise UserError(
                f"task.loss: {source.unknown} labels of {source.name!r} are unknown, which only "
                f"our own losses leave out; expected one of "
                f"{', '.join(loss.__name__ for loss in MULTI)}, found {settings.loss!r}"
            )
        return cls(require_classes(source, settings), settings.loss)

    def degenerate(self, targets: dict[str, np.ndarray]) -> str:
        known = targets["label"][targets["label"] >= 0]
        share = float(known.mean()) if len(known) else 0.0
        if 0 < share < 1:
            return ""
        return "every example has every label" if share else "no example has a label"

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        label, hot = example["label"], np.zeros(self.head_size, np.float32)
        vector = isinstance(label, np.ndarray) and label.shape == hot.shape
        if vector and (np.isin(label, (0, 1)) | (label != label)).all():
            known = label.astype(np.float32)
            return {"label": np.where(np.isnan(known), np.float32(-1), known)}
        several = isinstance(label, (list, tuple)) or np.ndim(label)
        for item in label if several else [label]:
            hot[class_number(item, self.class_names)] = 1
        return {"label": hot}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((count, self.head_size), jnp.float32)}

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """``loss`` f32[batch], mean over labels; ``exact`` f32[batch], 1 if all labels are right.

        A label is predicted if its probability is above 1/2. Only known labels count.

        Args:
          outputs: logits f32[batch, labels].
          batch: ``label`` f32[batch, labels], 0, 1, or -1 for an unknown label.
          hyper: None in evaluation, where the loss is the sigmoid cross-entropy.
        """
        loss = parse_loss(self.loss if hyper is not None else "", MULTI)
        right = (outputs > 0) == (batch["label"] > 0.5)
        exact = jnp.all(right | (batch["label"] < 0), axis=-1)
        return {
            "loss": loss(outputs, batch["label"]),
            "exact": exact.astype(jnp.float32),
        }

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"logits": outputs, "label": batch["label"], **self.per_example(outputs, batch)}

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``average_precision``, the mean over labels that occur (mAP); ``exact``; ``loss``."""
        return {
            "average_precision": _macro(metrics.average_precision, observed),
            "exact": float(observed["exact"].mean(dtype=np.float64)),
            "loss": float(observed["loss"].mean(dtype=np.float64)),
        }

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores` with a bootstrap interval, ``auroc``, and ``micro_f1`` at probability 1/2."""
        n = len(observed["loss"])

        def resampled(rows: np.ndarray) -> float:
            part = {k: observed[k][rows] for k in ("logits", "label")}
            return _macro(metrics.average_precision, part)

        low, high = bootstrap(resampled, n, resamples=200)
        predicted = (observed["logits"] > 0) & (observed["label"] >= 0)
        true = observed["label"] > 0.5
        hits = int((predicted & true).sum())
        return {
            **self.scores(observed),
            "average_precision_low": low,
            "average_precision_high": high,
            "auroc": _macro(metrics.auroc, observed),
            "micro_f1": 2 * hits / max(int(predicted.sum() + true.sum()), 1),
        }

    def per_class(self, observed: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """``n`` examples with each label; ``average_precision``, and at probability 1/2 the rest.

        The rest is ``precision``, ``recall`` and ``f1``.
        """
        found = {}
        for i, name in enumerate(self.class_names):
            known = observed["label"][:, i] >= 0
            logits, true = observed["logits"][known, i], observed["label"][known, i] > 0.5
            each = metrics.per_class(metrics.confusion(logits > 0, true, 2))
            one = {score: values[1].item() for score, values in each.items()}
            found[name] = {**one, "average_precision": metrics.average_precision(logits, true)}
        return found

    def correct(self, observed: dict[str, np.ndarray]) -> np.ndarray:
        return observed["exact"] > 0.5

    def numbers(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """``probabilities`` f32[n, classes] of each class alone, in the order of the classes."""
        return {"probabilities": jax.nn.sigmoid(outputs.astype(jnp.float32))}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Per row: ``labels`` above probability 1/2 and ``probabilities``, in falling order."""
        results = []
        for row in 1 / (1 + np.exp(-np.asarray(outputs, np.float64))):
            order = np.argsort(-row, kind="stable")
            results.append(
                {
                    "labels": [self.class_names[i] for i in order if row[i] > 0.5],
                    "probabilities": {self.class_names[i]: float(row[i]) for i in order},
                }
            )
        return results


def _macro(
    score: Callable[[np.ndarray, np.ndarray], float], observed: dict[str, np.ndarray]
) -> float:
    """Mean of a score over the labels; a label's score is over examples with a known value."""

    def of_known(logits: np.ndarray, labels: np.ndarray) -> float:
        known = labels >= 0
        return score(logits[known], labels[known] > 0.5)

    return mean_over_classes(of_known, observed["logits"], observed["label"])

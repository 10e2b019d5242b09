"""Single-label classification: softmax cross-entropy, accuracy, class probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from finetune_jax.data.classes import number_of
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source, require_column
from finetune_jax.errors import UserError, nearest
from finetune_jax.metrics import calibration
from finetune_jax.metrics import classification as metrics
from finetune_jax.metrics.intervals import wilson
from finetune_jax.tasks.base import Batch, ClassTask, one_class, scores_by_class
from finetune_jax.tasks.loss import Objective, mixed, parse_loss
from finetune_jax.tasks.objectives import SINGLE, class_balanced, distill_features


def require_classes(source: Source, settings: ConfigDict) -> tuple[str, ...]:
    """The class names of a source.

    Raises:
      UserError: the source has no classes, or not ``settings.num_classes`` of them, if that number
        is not 0.
    """
    names = source.class_names
    if not names:
        require_column(source, "label", "data.label_column")
        # The numbers of a table may be values or names of classes.
        table = source.name.startswith(("csv:", "hf:")) and "label" in source.columns
        hint = (
            " but numbers; if the numbers are names of classes, set data.label_kind to 'class'; if "
            "they are values, the task is 'regression' (task.name)"
            if table
            else ""
        )
        raise UserError(f"task.name: the labels of {source.name!r} are not classes{hint}")
    if settings.num_classes not in (0, len(names)):
        raise UserError(
            f"task.num_classes: the head would have {settings.num_classes} classes, but "
            f"{source.name!r} has {len(names)}: {', '.join(names[:12])}"
        )
    return names


def class_number(label: Any, names: tuple[str, ...]) -> int:
    """The number of a class, given by number or name; UserError for an unknown class."""
    if isinstance(label, bytes):
        label = label.decode("utf-8", "replace")
    if isinstance(label, str):
        if label not in names:
            raise UserError(f"unknown label {label!r}.{nearest(label, names)}")
        return names.index(label)
    number = number_of(label) if np.ndim(label) == 0 else None
    if number is None or number != int(number) or not 0 <= number < len(names):
        raise UserError(
            f"label {label!r}: expected a class number from 0 to {len(names) - 1}; an unlabelled "
            f"split cannot be trained on or scored"
        )
    return int(number)


@dataclasses.dataclass(frozen=True)
class Classification(ClassTask):
    """One class per example.

    Attributes:
      class_names: names of the classes, in label order.
      loss: text of the training loss, one of `finetune_jax.tasks.objectives.SINGLE`; empty for
        cross-entropy.
      counts: number of training examples per class, if the loss reads them.
    """

    loss: str = ""
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError for wrong class names, or counts that are not those of the classes."""
        super().__post_init__()
        if self.counts and (len(self.counts) != self.head_size or min(self.counts) < 0):
            raise UserError(
                f"counts: expected {self.head_size} numbers of examples, one per class, found "
                f"{self.counts!r:.80}"
            )

    name = "classification"
    labels = "class"
    metric = "accuracy"

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> Classification:
        parse_loss(settings.loss, SINGLE)
        return cls(require_classes(source, settings), settings.loss)

    @property
    def _objective(self) -> Objective:
        return parse_loss(self.loss, SINGLE)

    @property
    def needs_fit(self) -> bool:
        return self._objective.function is class_balanced

    @property
    def teacher(self) -> str:
        return self._objective.options.get("teacher", "")

    @property
    def reads_features(self) -> bool:
        return self._objective.function is distill_features

    def fit(self, targets: dict[str, np.ndarray]) -> Classification:
        counts = np.bincount(targets["label"], minlength=self.head_size)
        return dataclasses.replace(self, counts=tuple(counts.tolist()))

    def degenerate(self, targets: dict[str, np.ndarray]) -> str:
        return one_class(targets["label"], self.class_names)

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"label": np.asarray(class_number(example["label"], self.class_names), np.int32)}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((count,), jnp.int32)}

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """Loss and correctness of each example.

        The objective and label smoothing are used in training only; in evaluation the loss is the
        cross-entropy.

        Args:
          outputs: logits f32[batch, classes].
          batch: ``label`` i32[batch], what `finetune_jax.tasks.loss.mixed` reads for mixed images,
            and what the objective reads (`finetune_jax.tasks.objectives.Given`).
          hyper: ``label_smoothing``, the share of the target that is spread evenly over all
            classes, in [0, 1); None in evaluation.

        Returns:
          ``loss`` f32[batch] in nats, with the entropy of smoothed labels included; ``accuracy``
          f32[batch], 0 or 1.
        """
        correct = (jnp.argmax(outputs, -1) == batch["label"]).astype(jnp.float32)
        if hyper is None:
            ones = jax.nn.one_hot(batch["label"], self.head_size)
            return {"loss": optax.softmax_cross_entropy(outputs, ones), "accuracy": correct}
        given = {"counts": self.counts or (1,) * self.head_size, **batch}

        def loss(labels: jax.Array) -> jax.Array:
            ones = jax.nn.one_hot(labels, self.head_size)
            return self._objective(
                outputs, optax.smooth_labels(ones, hyper["label_smoothing"]), given
            )

        return {"loss": mixed(loss, batch), "accuracy": correct}

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"logits": outputs, "label": batch["label"], **self.per_example(outputs, batch)}

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``accuracy`` with its Wilson interval, and ``loss``, the mean cross-entropy in nats."""
        correct = observed["accuracy"]
        low, high = wilson(int(correct.sum()), len(correct))
        return {
            "accuracy": float(correct.mean(dtype=np.float64)),
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": float(observed["loss"].mean(dtype=np.float64)),
        }

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores`, top-5 accuracy, balanced accuracy, F1, MCC, AUROC and calibration.

        ``auroc`` and ``average_precision`` tell one class from the rest, and are means over the
        classes for which they are defined.
        """
        logits, labels = observed["logits"], observed["label"]
        predicted = logits.argmax(-1)
        table = metrics.confusion(predicted, labels, self.head_size)
        ones = np.eye(self.head_size, dtype=bool)[labels]
        found = {**self.scores(observed)}
        if self.head_size > 5:
            right = metrics.top_k(logits, labels, 5)
            low, high = wilson(int(right.sum()), len(right))
            found |= {"top5": float(right.mean()), "top5_low": low, "top5_high": high}
        probabilities = np.exp(calibration.log_softmax(logits))
        found |= {
            "balanced_accuracy": metrics.balanced_accuracy(table),
            "macro_f1": metrics.macro_f1(table),
            "matthews": metrics.matthews(table),
            "auroc": mean_over_classes(metrics.auroc, probabilities, ones),
            "average_precision": mean_over_classes(metrics.average_precision, probabilities, ones),
            "ece": calibration.ece(logits, labels),
            "aurc": calibration.area_under_risk(logits, labels),
        }
        return found

    def per_class(self, observed: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """``n``, ``precision``, ``recall`` and ``f1`` of each class."""
        predicted = observed["logits"].argmax(-1)
        table = metrics.confusion(predicted, observed["label"], self.head_size)
        return scores_by_class(self.class_names, metrics.per_class(table))

    def correct(self, observed: dict[str, np.ndarray]) -> np.ndarray:
        return observed["accuracy"] > 0.5

    def class_logits(self, observed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return observed["logits"], observed["label"]

    def numbers(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """``probabilities`` f32[n, classes], in the order of the classes."""
        return {"probabilities": jax.nn.softmax(outputs.astype(jnp.float32))}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """Per row of logits f32[n, classes]: ``label`` and ``probabilities`` in falling order."""
        results = []
        for row in np.exp(calibration.log_softmax(outputs)):
            order = np.argsort(-row, kind="stable")
            results.append(
                {
                    "label": self.class_names[order[0]],
                    "probabilities": {self.class_names[i]: float(row[i]) for i in order},
                }
            )
        return results


def mean_over_classes(
    score: Callable[[np.ndarray, np.ndarray], float], values: np.ndarray, labels: np.ndarray
) -> float:
    """Mean of a score over the classes for which the score is finite; nan without any.

    Args:
      score: function of (values f[n], labels bool[n]) of one class.
      values: f[n, classes], such as logits.
      labels: bool[n, classes].
    """
    scores = [score(values[:, i], labels[:, i]) for i in range(values.shape[1])]
    defined = [x for x in scores if np.isfinite(x)]
    return float(np.mean(defined)) if defined else float("nan")

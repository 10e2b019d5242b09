"""Similarity of pairs of inputs: the cosine of their embeddings.

The head is a projection of the features that starts as the identity, so that before the first step
the embeddings are the features of the pretrained encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.metrics import regression as metrics
from finetune_jax.metrics.classification import auroc
from finetune_jax.metrics.intervals import bootstrap_pairs
from finetune_jax.tasks.base import Batch, Task
from finetune_jax.tasks.loss import parse_loss
from finetune_jax.tasks.objectives import Given
from finetune_jax.tasks.regression import constant, real_value


def cosine(unit: jax.Array, wanted: jax.Array, given: Given) -> jax.Array:
    """Squared difference between cosine and target (arXiv 1908.10084): f32[b].

    Args:
      unit: embeddings f32[b, 2, width] of length 1.
      wanted: target cosines f32[b], in [0, 1].
      given: not read.
    """
    del given
    return (jnp.sum(unit[:, 0] * unit[:, 1], axis=-1) - wanted) ** 2


def contrastive(
    unit: jax.Array, wanted: jax.Array, given: Given, *, temperature: float = 0.05
) -> jax.Array:
    """InfoNCE (arXiv 1807.03748) of each pair against the batch, in both directions: f32[b].

    `temperature` divides the cosines and is above 0. The targets are not read.
    """
    del wanted, given
    table = unit[:, 0] @ unit[:, 1].T / temperature
    own = jnp.arange(len(table))
    forth, back = (
        optax.softmax_cross_entropy_with_integer_labels(t, own) for t in (table, table.T)
    )
    return (forth + back) / 2


_LOSSES = (cosine, contrastive)

Score = Callable[[np.ndarray, np.ndarray], float]
"""A function of (cosines f32[n], labels f32[n]) to a score."""


def _measures(labels: np.ndarray) -> dict[str, Score]:
    """Scores by name; with two different labels (alike or not), ``auroc`` is one of the scores."""
    found: dict[str, Score] = {"spearman": metrics.spearman, "pearson": metrics.pearson}
    values = np.unique(labels)
    if len(values) == 2:

        def separation(cosine: np.ndarray, label: np.ndarray) -> float:
            return auroc(cosine, label == values[1])

        found["auroc"] = separation
    return found


@dataclasses.dataclass(frozen=True)
class Similarity(Task):
    """Similarity of two images or two texts.

    Attributes:
      width: width of the embedding, which is the width of the model's features.
      loss: text of the training loss: `cosine`, or ``contrastive(temperature=0.05)``, which does
        not read labels; empty for `cosine`.
      low: lowest training label, whose target cosine is 0.
      high: highest training label, whose target cosine is 1.
    """

    width: int = 0
    loss: str = ""
    low: float = 0.0
    high: float = 1.0

    name = "similarity"
    labels = "number"
    metric = "spearman"
    views = 2

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> Similarity:
        parse_loss(settings.loss, _LOSSES)
        if len(preprocess.columns) != 2:
            raise UserError(
                f"task.name: similarity compares two columns, and the input is "
                f"{', '.join(preprocess.columns)}; set data.text_columns to two names"
            )
        if "image2" in preprocess.columns and not source.pairs:
            raise UserError(
                f"task.name: similarity compares two images, and examples of {source.name!r} have "
                f"one image; set data.image_column to two columns, such as 'left,right'"
            )
        return cls(loss=settings.loss)

    def for_features(self, width: int) -> Similarity:
        return dataclasses.replace(self, width=width)

    @property
    def needs_fit(self) -> bool:
        return True

    def fit(self, targets: dict[str, np.ndarray]) -> Similarity:
        low, high = float(targets["label"].min()), float(targets["label"].max())
        return dataclasses.replace(self, low=low, high=high if high > low else low + 1)

    @property
    def head_size(self) -> int:
        return self.width

    def start_head(
        self, head: dict[str, Any], key: jax.Array | None = None
    ) -> dict[str, Any] | None:
        """The identity matrix, and zeros as the bias."""
        del key
        kernel = head["kernel"]
        start = {"kernel": jnp.eye(kernel.shape[0], kernel.shape[1], dtype=kernel.dtype)}
        if "bias" in head:
            start["bias"] = jnp.zeros(head["bias"].shape, head["bias"].dtype)
        return start

    def degenerate(self, targets: dict[str, np.ndarray]) -> str:
        # The contrastive loss does not read the labels.
        reads = parse_loss(self.loss, _LOSSES).function is cosine
        return constant(targets["label"]) if reads else ""

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"label": real_value(example["label"])}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((count,), jnp.float32)}

    def _unit(self, outputs: jax.Array) -> jax.Array:
        """Embeddings f32[b, 2, width] of length 1."""
        pairs = outputs.reshape(-1, 2, outputs.shape[-1])
        # The norm has no finite derivative at 0.
        square = jnp.sum(pairs * pairs, axis=-1, keepdims=True)
        return pairs * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """``loss`` and ``cosine`` f32[batch].

        Args:
          outputs: embeddings f32[batch * 2, width], the two embeddings of a pair consecutive.
          batch: ``label`` f32[batch].
          hyper: None in evaluation, where the loss is `cosine`.
        """
        unit = self._unit(outputs)
        loss = parse_loss(self.loss if hyper is not None else "", _LOSSES)
        wanted = (batch["label"] - self.low) / (self.high - self.low)
        return {"loss": loss(unit, wanted), "cosine": jnp.sum(unit[:, 0] * unit[:, 1], axis=-1)}

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"label": batch["label"], **self.per_example(outputs, batch)}

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``spearman`` and ``pearson`` of cosine and label, ``auroc`` for two labels; ``loss``."""
        cosine, labels = observed["cosine"], observed["label"]
        return {
            **{name: measure(cosine, labels) for name, measure in _measures(labels).items()},
            "loss": float(observed["loss"].mean(dtype=np.float64)),
        }

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores`, and bootstrap intervals of all scores but ``loss``."""
        cosine, labels = observed["cosine"], observed["label"]
        found = self.scores(observed)
        for name, measure in _measures(labels).items():
            low, high = bootstrap_pairs(measure, cosine, labels)
            found |= {f"{name}_low": low, f"{name}_high": high}
        return found

    def numbers(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """``cosine`` f32[n] of each pair."""
        unit = self._unit(outputs)
        return {"cosine": (unit[:, 0] * unit[:, 1]).sum(-1)}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """``{"cosine": float}`` of each pair."""
        unit = np.asarray(self._unit(jnp.asarray(outputs)), np.float64)
        return [{"cosine": float(a @ b)} for a, b in unit]

"""Contrastive pre-training: the embeddings of two augmented views of an image should be near.

`SimCLR` needs no labels; in `SupCon` the embeddings of all images of a class should be near. The
outputs are embeddings: the head is the last layer of a projection, which starts at random values.
The projection is dropped when the artifact is fine-tuned (``pretrained.path=DIR/artifact``,
``pretrained.new_head=True``).
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
from finetune_jax.metrics.intervals import wilson
from finetune_jax.models import StagedModel
from finetune_jax.models.pretraining import with_projection
from finetune_jax.tasks.base import Batch, Task, one_class
from finetune_jax.tasks.classification import class_number, require_classes
from finetune_jax.tasks.loss import Objective, parse_loss
from finetune_jax.tasks.objectives import Given, contrast

_TOGETHER = 256  # number of images whose embeddings are compared in a score
_NEIGHBOURS = 20  # number of neighbours that vote in ``knn_accuracy``


def ntxent(
    outputs: jax.Array,
    targets: jax.Array,
    given: Given,
    *,
    temperature: float = 0.5,
    width: int = 128,
    hidden: int = 128,
) -> jax.Array:
    """NT-Xent (arXiv 2002.05709): f32[2 b] from embeddings f32[2 b, width].

    The two views of an image are consecutive rows. `width` is the width of the embedding, and
    `hidden` the width of the hidden layer of the projection, 0 for no hidden layer.
    """
    del targets, given, width, hidden
    return contrast(outputs, jnp.arange(len(outputs)) // 2, temperature)


def supcon(
    outputs: jax.Array,
    targets: jax.Array,
    given: Given,
    *,
    temperature: float = 0.1,
    width: int = 128,
    hidden: int = 128,
) -> jax.Array:
    """Supervised contrastive loss (arXiv 2004.11362): f32[2 b], with targets i32[b] as classes.

    The arguments are those of `ntxent`.
    """
    del given, width, hidden
    return contrast(outputs, jnp.repeat(targets, 2), temperature)


@dataclasses.dataclass(frozen=True)
class SimCLR(Task):
    """Two views of each image against all other images of the batch (Chen et al. 2020).

    Attributes:
      class_names: names of the classes for the score ``knn_accuracy``; empty without labels.
      loss: text of the training loss, `ntxent` with its options; empty for the default options.
    """

    class_names: tuple[str, ...] = ()
    loss: str = ""

    name = "simclr"
    metric = "loss"
    better = "min"
    random_inputs = True
    needs_augment = True

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> SimCLR:
        if preprocess.kind != "image":
            raise UserError(f"task.name: {cls.name} needs images, not {preprocess.kind}")
        task = cls(cls._classes(source, settings), settings.loss)
        task._objective  # noqa: B018  so that a wrong loss is an error here
        return task

    @classmethod
    def _classes(cls, source: Source, settings: ConfigDict) -> tuple[str, ...]:
        del settings
        return source.class_names

    @property
    def _objective(self) -> Objective:
        return parse_loss(self.loss, (ntxent,))

    @property
    def head_size(self) -> int:
        return self._objective.options["width"]

    @property
    def reads_features(self) -> bool:
        return True

    def adapt(self, model: StagedModel) -> StagedModel:
        return with_projection(model, self._objective.options["hidden"])

    def start_head(
        self, head: dict[str, Any], key: jax.Array | None = None
    ) -> dict[str, Any] | None:
        """LeCun's normal initialisation: from a head of zeros, all embeddings would be equal."""
        key = jax.random.key(0) if key is None else key
        draw = jax.nn.initializers.lecun_normal()(key, head["kernel"].shape, jnp.float32)
        return {**jax.tree.map(jnp.zeros_like, head), "kernel": draw}

    def inputs(
        self, key: jax.Array, draw: Callable[[jax.Array], tuple[Any, Batch]]
    ) -> tuple[Any, Batch]:
        """Two views of each image, in consecutive rows: f32[2 b, size, size, 3].

        Raises:
          UserError: the augmentation mixes images.
        """
        (one, batch), (other, _) = (draw(k) for k in jax.random.split(key))
        if "mix" in batch:
            raise UserError(
                f"data.augment: remove mixup and cutmix; {self.name} needs unmixed images"
            )
        views = jax.tree.map(
            lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:]), one, other
        )
        return views, batch

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        if not self.class_names:
            return {}
        return {"label": np.asarray(class_number(example["label"], self.class_names), np.int32)}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((count,), jnp.int32)} if self.class_names else {}

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """``loss`` f32[b], the mean over the two views, and ``cosine`` f32[b] between the views.

        Args:
          outputs: embeddings f32[2 b, width].
          batch: the batch, of which `SupCon` reads ``label`` i32[b].
          hyper: unused.
        """
        del hyper
        losses = self._objective(outputs, _labels(batch, len(outputs) // 2))
        pairs = outputs.reshape(-1, 2, outputs.shape[-1])
        length = jnp.maximum(jnp.linalg.norm(pairs, axis=-1), 1e-12)
        cosine = jnp.sum(pairs[:, 0] * pairs[:, 1], axis=-1) / (length[:, 0] * length[:, 1])
        return {"loss": losses.reshape(-1, 2).mean(1), "cosine": jax.lax.stop_gradient(cosine)}

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """``embedding`` f32[b, 2, width], and ``features`` f32[b, w], the inputs of the projection.

        The features are the mean over the two views; with labels, ``label`` i32[b] is there too.
        """
        features = batch["features"]
        return {
            "embedding": outputs.reshape(-1, 2, outputs.shape[-1]),
            "features": features.reshape(-1, 2, features.shape[-1]).mean(1),
            **{name: batch[name] for name in self.abstract(1)},
        }

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``loss``, the mean over the split, in which 256 images at a time are compared.

        With labels also ``knn_accuracy`` and its Wilson interval: the class of each image is
        predicted by an equal vote of the 20 nearest other images of the split, by the cosine of
        their features.
        """
        embedding = observed["embedding"]
        total = 0.0
        for start in range(0, len(embedding), _TOGETHER):
            part = {name: jnp.asarray(x[start : start + _TOGETHER]) for name, x in observed.items()}
            rows = part["embedding"].reshape(-1, embedding.shape[-1])
            total += float(self._objective(rows, _labels(part, len(rows) // 2)).sum()) / 2
        found = {"loss": total / len(embedding)}
        if self.class_names:
            right = nearest_agree(observed["features"], observed["label"], _NEIGHBOURS)
            low, high = wilson(int(right.sum()), len(right))
            found |= {
                "knn_accuracy": float(right.mean()),
                "knn_accuracy_low": low,
                "knn_accuracy_high": high,
            }
        return found

    def numbers(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """``embedding`` f32[n, width] of each image, a vector of length 1."""
        length = jnp.maximum(jnp.linalg.norm(outputs, axis=-1, keepdims=True), 1e-12)
        return {"embedding": outputs / length}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """``{"embedding": [float, …]}`` of each image, a vector of length 1."""
        outputs = np.asarray(outputs, np.float64)
        length = np.maximum(np.linalg.norm(outputs, axis=-1, keepdims=True), 1e-12)
        return [{"embedding": row.tolist()} for row in outputs / length]


@dataclasses.dataclass(frozen=True)
class SupCon(SimCLR):
    """Two views of each image, which attract all images of its class (Khosla et al. 2020).

    Attributes:
      class_names: names of the classes, in label order.
      loss: text of the training loss, `supcon` with its options; empty for the default options.
    """

    name = "supcon"
    labels = "class"

    @classmethod
    def _classes(cls, source: Source, settings: ConfigDict) -> tuple[str, ...]:
        return require_classes(source, settings)

    def degenerate(self, targets: dict[str, np.ndarray]) -> str:
        return one_class(targets["label"], self.class_names)

    @property
    def _objective(self) -> Objective:
        return parse_loss(self.loss, (supcon,))


def _labels(batch: Mapping[str, jax.Array], count: int) -> jax.Array:
    """``label`` i32[count] of a batch; zeros where the task has no labels, which no loss reads."""
    return batch["label"] if "label" in batch else jnp.zeros(count, jnp.int32)


def nearest_agree(features: np.ndarray, labels: np.ndarray, neighbours: int) -> np.ndarray:
    """Whether the most frequent label of the nearest other examples is right, bool[n].

    Of labels with equally many votes, the lowest wins.

    Args:
      features: f[n, width], compared by cosine.
      labels: i[n], class numbers.
      neighbours: number of neighbours that vote; all other examples where there are fewer.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    count, classes = min(neighbours, len(unit) - 1), int(labels.max()) + 1
    right = np.zeros(len(unit), bool)
    for start in range(0, len(unit), 1024) if count else ():
        rows = np.arange(start, min(start + 1024, len(unit)))
        cosines = unit[rows] @ unit.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        found = labels[np.argpartition(-cosines, count - 1, axis=1)[:, :count]]
        votes = (found[..., None] == np.arange(classes)).sum(1)
        right[rows] = votes.argmax(1) == labels[rows]
    return right

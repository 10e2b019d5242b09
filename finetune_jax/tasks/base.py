"""What a task is: targets, loss, metrics, and how a prediction reads. One file per task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.models import StagedModel

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task value; a subclass is a frozen dataclass whose fields go into the artifact.

    Attributes:
      class_names: names of the classes, in label order; empty for a task without classes.
      name: as in ``config.task.name``.
      metric: the score that names the best checkpoint and is printed first.
      better: whether more of it is better: ``max`` or ``min``.
      views: inputs per example, in a row: a batch of b examples is b * views inputs to the model.
      random_inputs: whether `inputs` draws something in evaluation too; what it draws is then the
        same in every evaluation. Nothing of such a task is cached.
      needs_augment: whether it makes no sense without ``data.augment``.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    better: ClassVar[str] = "max"
    views: ClassVar[int] = 1
    random_inputs: ClassVar[bool] = False
    needs_augment: ClassVar[bool] = False

    class_names: tuple[str, ...] = dataclasses.field(default=(), init=False, repr=False)

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> Task:
        """The task of a config and its source.

        Args:
          settings: ``config.task``.
          source: opened.
          preprocess: of the inputs.

        Raises:
          UserError: the source has no targets of this kind, or a setting is wrong.
        """
        raise NotImplementedError

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` takes something from the training targets."""
        return False

    def fit(self, targets: dict[str, np.ndarray]) -> Task:
        """The task with the constants that it takes from all training targets, such as counts."""
        del targets
        return self

    @property
    def head_size(self) -> int:
        """Rows of the head."""
        raise NotImplementedError

    def for_features(self, width: int) -> Task:
        """The task for a model whose features have a width, where `head_size` depends on it."""
        del width
        return self

    def start_head(
        self, head: dict[str, Any], key: jax.Array | None = None
    ) -> dict[str, Any] | None:
        """A head that this task starts with whatever the weight file holds; None for most tasks.

        Args:
          head: as the model draws it.
          key: for what is drawn.
        """
        del head, key
        return None

    def adapt(self, model: StagedModel) -> StagedModel:
        """The model as this task calls it; most tasks call it as it is."""
        return model

    @property
    def teacher(self) -> str:
        """Folder of an artifact whose answers the loss of training reads; empty for none.

        The batch then has ``teacher``, its logits, and ``teacher_features``.
        """
        return ""

    @property
    def reads_features(self) -> bool:
        """Whether the batch should have ``features``, what enters the head, f32[b, width]."""
        return False

    def inputs(
        self, key: jax.Array, draw: Callable[[jax.Array], tuple[Any, Batch]]
    ) -> tuple[Any, Batch]:
        """What the model is called with in training, on device.

        Args:
          key: PRNG key of this batch.
          draw: augments it: key to (what a model is called with, batch with its targets).
        """
        return draw(key)

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """An example's targets as arrays of fixed shape, by their name in a batch."""
        raise NotImplementedError

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the targets of a batch."""
        raise NotImplementedError

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """Loss and progress of each example.

        Args:
          outputs: of the model, f32[batch * views, head_size].
          batch: with the targets.
          hyper: means of training, such as ``label_smoothing``; None scores, without any.

        Returns:
          ``loss`` f32[batch], and what the progress line shows beside it.
        """
        raise NotImplementedError

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """What `scores` needs of each example, arrays [batch, …] by name, on device."""
        raise NotImplementedError

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """Scores of a split from `observe` of all its examples.

        Returns:
          ``loss``, the task's metrics, and ``<metric>_low`` and ``<metric>_high``: the 95 %
          interval of those that have one.
        """
        raise NotImplementedError

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores` and whatever takes longer: more metrics, bootstrap intervals."""
        return self.scores(observed)

    def correct(self, observed: dict[str, np.ndarray]) -> np.ndarray | None:
        """Whether each example was right, bool[n]; None where that is no question of yes or no."""
        del observed
        return None

    def class_logits(self, observed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """Logits f[n, classes] and labels i[n] of classes that exclude each other; else None."""
        del observed
        return None

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """What a person is told of each prediction: plain JSON values."""
        raise NotImplementedError

    @classmethod
    def door(cls) -> str:
        """The ``package.module:name`` of a task of another package; empty for our own tasks."""
        ours = cls.__module__.partition(".")[0] == __package__.partition(".")[0]
        return "" if ours else f"{cls.__module__}:{cls.__qualname__}"

    def to_json(self) -> dict[str, Any]:
        """Name, or the door of a task of another package, and fields as plain JSON values."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"name": self.door() or self.name, **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Task:
        """The inverse of `to_json`, without the name; UserError for fields of another version."""
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except TypeError as error:
            raise UserError(f"task {cls.name!r}: {error}") from None


@dataclasses.dataclass(frozen=True)
class ClassTask(Task):
    """A task whose targets are classes with names.

    Attributes:
      class_names: names of the classes, in label order.
    """

    class_names: tuple[str, ...] = dataclasses.field()

    @property
    def head_size(self) -> int:
        """One row per class."""
        return len(self.class_names)


def require_classification(task: Task) -> None:
    """Raises UserError for a task whose examples do not have exactly one class each."""
    if task.name != "classification":
        raise UserError(
            f"probes of features and shifted test sets need one class per example; expected "
            f"the task 'classification', found {task.name!r}"
        )

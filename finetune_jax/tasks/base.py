"""The base classes of tasks: targets, loss, metrics, and the reading of a prediction."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from finetune_jax import schema
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.models import StagedModel

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task; a subclass is a frozen dataclass whose fields are stored in the artifact.

    Attributes:
      class_names: names of the classes, in label order; empty for a task without classes.
      name: name of the task, for our own tasks the text of ``config.task.name``.
      metric: name of the score that ranks checkpoints and is printed first.
      better: ``max`` or ``min``: whether a higher or a lower `metric` is better.
      views: number of inputs of the model per example; the inputs of an example are consecutive
        rows, so a batch of b examples has b * views rows.
      random_inputs: whether `inputs` is random in evaluation too. The PRNG key is then the same in
        every evaluation, and no activation of the task is cached.
      needs_augment: whether the task needs ``data.augment``.
      numeric: whether the target is a number; the names of classes may then be numbers.
      labels: what the column ``label`` of an example is: ``class``, ``classes`` (any number of
        them), ``number``, or empty for a task that reads no label or any kind.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    better: ClassVar[str] = "max"
    views: ClassVar[int] = 1
    random_inputs: ClassVar[bool] = False
    needs_augment: ClassVar[bool] = False
    numeric: ClassVar[bool] = False
    labels: ClassVar[str] = ""

    class_names: tuple[str, ...] = dataclasses.field(default=(), init=False, repr=False)

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> Task:
        """The task of a config and its data source.

        Args:
          settings: ``config.task``.
          source: the opened source.
          preprocess: preprocessing of the inputs.

        Raises:
          UserError: the source has no targets of this kind, or a setting is wrong.
        """
        raise NotImplementedError

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` reads the training targets."""
        return False

    def fit(self, targets: dict[str, np.ndarray]) -> Task:
        """The task with constants computed from all training targets, such as counts of classes."""
        del targets
        return self

    def degenerate(self, targets: dict[str, np.ndarray]) -> str:
        """Why nothing can be learned from some training targets; "" where they differ.

        Args:
          targets: results of `host` for some examples, arrays [n, …] by name.
        """
        del targets
        return ""

    @property
    def head_size(self) -> int:
        """Number of outputs of the head."""
        raise NotImplementedError

    def for_features(self, width: int) -> Task:
        """The task for a model with features of this width, on which `head_size` may depend."""
        del width
        return self

    def start_head(
        self, head: dict[str, Any], key: jax.Array | None = None
    ) -> dict[str, Any] | None:
        """Initial values of the head, if the task never takes them from a weight file; else None.

        Args:
          head: initial values of the model.
          key: PRNG key for random values.
        """
        del head, key
        return None

    def adapt(self, model: StagedModel) -> StagedModel:
        """The model with the changes that the task needs; most tasks need no change."""
        return model

    @property
    def teacher(self) -> str:
        """Folder of the artifact of a teacher, for the training loss; empty for no teacher.

        With a teacher, the batch has the teacher's logits ``teacher`` and its features
        ``teacher_features``.
        """
        return ""

    @property
    def reads_features(self) -> bool:
        """Whether the batch needs ``features`` f32[b, width], the inputs of the head."""
        return False

    def inputs(
        self, key: jax.Array, draw: Callable[[jax.Array], tuple[Any, Batch]]
    ) -> tuple[Any, Batch]:
        """The inputs of the model in training, on device, and the batch with its targets.

        Args:
          key: PRNG key of the batch.
          draw: augments the batch: function of a PRNG key to (inputs of the model, batch with its
            targets).
        """
        return draw(key)

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """The targets of an example as arrays of fixed shape, by their names in a batch."""
        raise NotImplementedError

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the targets of a batch of `count` examples."""
        raise NotImplementedError

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """Loss and progress metrics of each example.

        Args:
          outputs: outputs of the model, f32[batch * views, head_size].
          batch: the batch with the targets.
          hyper: hyper-parameters of the training loss, such as ``label_smoothing``; None in
            evaluation, where the loss is a score without them.

        Returns:
          ``loss`` f32[batch], and further metrics f32[batch] for the progress line, by name.
        """
        raise NotImplementedError

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """The arrays [batch, …] that `scores` reads, by name, computed on device."""
        raise NotImplementedError

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """Scores of a split.

        Args:
          observed: results of `observe` for all examples of the split, arrays [n, …] by name.

        Returns:
          ``loss`` and the metrics of the task, and ``<metric>_low`` and ``<metric>_high``, the 95 %
          interval of a metric, where the interval is computed.
        """
        raise NotImplementedError

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores`, and metrics and bootstrap intervals that take longer to compute."""
        return self.scores(observed)

    def per_class(self, observed: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Scores of each class by its name; empty for a task without classes.

        Returns:
          By class: ``n``, the number of examples with this label (of segmentation, of pixels), and
          scores of this class alone, such as ``precision``, ``recall`` and ``f1``; nan where a
          score is undefined.
        """
        del observed
        return {}

    def correct(self, observed: dict[str, np.ndarray]) -> np.ndarray | None:
        """Whether each prediction is right, bool[n]; None if predictions are not right or wrong."""
        del observed
        return None

    def class_logits(self, observed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """Logits f[n, classes] and labels i[n] of a task with one class per example; else None."""
        del observed
        return None

    def numbers(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """The numbers that `read` puts into words, computed on device for an exported model.

        Args:
          outputs: outputs of the model, f32[n * views, head_size].

        Returns:
          Arrays [n, …] by name, such as ``probabilities`` f32[n, classes] in the order of the
          classes; empty for a task whose outputs are what it predicts.
        """
        del outputs
        return {}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """The predictions of outputs f32[n * views, head_size] in words: plain JSON values."""
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
        """The inverse of `to_json`, without the name.

        Raises:
          UserError: fields of another version, or values of another type or out of their range.
        """
        return cls(**schema.options_of(cls, values, f"task {cls.name!r}"))


@dataclasses.dataclass(frozen=True)
class ClassTask(Task):
    """A task whose targets are classes with names.

    Attributes:
      class_names: names of the classes, in label order.
    """

    class_names: tuple[str, ...] = dataclasses.field()

    def __post_init__(self) -> None:
        """Raises UserError for no classes, a class without a name, or two of one name."""
        if not self.class_names:
            raise UserError("class names: expected at least one, found none")
        counts = collections.Counter(self.class_names)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise UserError(
                f"class names: {len(twice)} are there more than once, such as {twice[0]!r:.80}; "
                f"each class needs a name of its own"
            )
        if "" in counts:
            raise UserError(f"class names: the name of class {self.class_names.index('')} is empty")

    @property
    def head_size(self) -> int:
        """One row per class."""
        return len(self.class_names)


def scores_by_class(
    names: tuple[str, ...], scores: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """The result of `Task.per_class` from arrays [classes] by score; counts become integers."""
    return {
        name: {score: values[i].item() for score, values in scores.items()}
        for i, name in enumerate(names)
    }


def one_class(labels: np.ndarray, names: tuple[str, ...]) -> str:
    """The result of `Task.degenerate` for labels i[n] of one class each."""
    if len(np.unique(labels)) > 1:
        return ""
    return f"all labels are of the class {names[int(labels[0])]!r}; expected at least two classes"


def require_classification(task: Task) -> None:
    """Raises UserError for a task whose examples do not have exactly one class each."""
    if task.name != "classification":
        raise UserError(
            f"probes of features and shifted test sets need one class per example; expected "
            f"the task 'classification', found {task.name!r}"
        )

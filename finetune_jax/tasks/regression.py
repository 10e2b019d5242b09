"""Regression: real values, which are standardised for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from finetune_jax import schema
from finetune_jax.data.classes import number_of
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.metrics import regression as metrics
from finetune_jax.metrics.intervals import bootstrap_pairs
from finetune_jax.tasks.base import Batch, Task
from finetune_jax.tasks.loss import parse_loss
from finetune_jax.tasks.objectives import REAL


def real_value(label: Any) -> np.ndarray:
    """A target as f32[]; raises UserError for a label that is not a finite number."""
    number = number_of(label) if np.ndim(label) == 0 else None
    with np.errstate(over="ignore"):
        value = np.asarray(np.float32(np.nan if number is None else number))
    if not np.isfinite(value):
        raise UserError(f"label {label!r}: expected a finite number")
    return value


def constant(values: np.ndarray) -> str:
    """The result of `Task.degenerate` for real targets f[n]."""
    if np.ptp(values) > 0:
        return ""
    return f"all targets are {float(values[0]):.6g}; expected at least two different values"


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "rmse": metrics.rmse,
    "mae": metrics.mae,
    "pearson": metrics.pearson,
    "spearman": metrics.spearman,
    "r2": metrics.r2,
}
"""Scores of (predicted f32[n], targets f32[n])."""


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """One real value per example.

    The output of the model is (value - mean) / std, with the mean and the standard deviation of the
    training targets, so that a good learning rate does not depend on the unit of the target.

    Attributes:
      loss: text of the training loss on the standardised scale, one of
        `finetune_jax.tasks.objectives.REAL`; empty for squared error.
      mean: mean of the training targets.
      std: standard deviation of the training targets; 1 where all targets are equal.
    """

    loss: str = ""
    mean: float = 0.0
    std: float = 1.0

    name = "regression"
    labels = "number"
    numeric = True
    metric = "rmse"
    better = "min"

    def __post_init__(self) -> None:
        """Raises UserError for a mean that is not finite, or a deviation that is not above 0."""
        schema.number()(self.mean, "mean of the targets")
        if not schema.number()(self.std, "deviation of the targets") > 0:
            raise UserError(f"deviation of the targets: expected a number > 0, found {self.std:g}")

    @classmethod
    def create(cls, settings: ConfigDict, source: Source, preprocess: Preprocess) -> Regression:
        parse_loss(settings.loss, REAL)
        return cls(loss=settings.loss)

    @property
    def needs_fit(self) -> bool:
        return True

    def fit(self, targets: dict[str, np.ndarray]) -> Regression:
        values = targets["label"].astype(np.float64)
        std = float(values.std())
        # The standard deviation of equal values may be a tiny number by rounding.
        constant = not std > 1e-7 * float(np.abs(values).max())
        return dataclasses.replace(self, mean=float(values.mean()), std=1.0 if constant else std)

    @property
    def head_size(self) -> int:
        return 1

    def degenerate(self, targets: dict[str, np.ndarray]) -> str:
        return constant(targets["label"])

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"label": real_value(example["label"])}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((count,), jnp.float32)}

    def per_example(
        self, outputs: jax.Array, batch: Batch, hyper: Mapping[str, Any] | None = None
    ) -> dict[str, jax.Array]:
        """``loss`` f32[batch] on the standardised scale, and ``error`` f32[batch].

        ``error`` is |value - prediction| in the unit of the target.

        Args:
          outputs: f32[batch, 1].
          batch: ``label`` f32[batch].
          hyper: None in evaluation, where the loss is the squared error.
        """
        loss = parse_loss(self.loss if hyper is not None else "", REAL)
        targets = (batch["label"] - self.mean) / self.std
        return {
            "loss": loss(outputs, targets[:, None]),
            "error": jnp.abs(outputs[:, 0] - targets) * self.std,
        }

    def observe(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {
            "predicted": outputs[:, 0] * self.std + self.mean,
            "label": batch["label"],
            **self.per_example(outputs, batch),
        }

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """``rmse``, ``mae`` (in the target's unit), ``pearson``, ``spearman``, ``r2``, ``loss``."""
        predicted, targets = observed["predicted"], observed["label"]
        return {
            **{name: score(predicted, targets) for name, score in _SCORES.items()},
            "loss": float(observed["loss"].mean(dtype=np.float64)),
        }

    def report(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """`scores`, and bootstrap intervals of all scores but ``loss``."""
        predicted, targets = observed["predicted"], observed["label"]
        found = self.scores(observed)
        for name, score in _SCORES.items():
            low, high = bootstrap_pairs(score, predicted, targets)
            found |= {f"{name}_low": low, f"{name}_high": high}
        return found

    def numbers(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """``value`` f32[n], in the target's unit."""
        return {"value": outputs[:, 0].astype(jnp.float32) * self.std + self.mean}

    def read(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """``{"value": float}`` per row, in the target's unit."""
        return [{"value": float(row[0]) * self.std + self.mean} for row in outputs]

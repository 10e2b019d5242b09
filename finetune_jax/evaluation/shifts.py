"""Test sets with the same classes and another distribution, and effective robustness on them.

A set that is not installed is reported as not run, with what it needs. Effective robustness (Taori
et al. 2020, arXiv 2007.00644) is the accuracy minus the accuracy that a line predicts from the
accuracy on the standard test set. The line is fitted in logit space to other models. It comes from
a file, as constants or as the accuracies of the models to fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.data.classes import class_numbers
from finetune_jax.data.sources import Options, open_source
from finetune_jax.errors import UserError, nearest
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.files import read_json
from finetune_jax.metrics.intervals import wilson
from finetune_jax.tasks import require_classification


@dataclasses.dataclass(frozen=True)
class Shift:
    """A shifted test set.

    Attributes:
      source: data source, as in ``config.data.source``.
      split: split of the source, as in ``config.data.test``.
      needs: data that must be installed, for messages.
    """

    source: str
    split: str
    needs: str


SHIFTS = {
    "cifar10_1": Shift(
        "tfds:cifar10_1/v6", "test", "CIFAR-10.1 v6 (Recht et al. 2018, arXiv 1806.00451)"
    ),
    "imagenet_v2": Shift(
        "tfds:imagenet_v2/matched-frequency",
        "test",
        "ImageNetV2 matched-frequency (Recht et al. 2019, arXiv 1902.10811)",
    ),
    "imagenet_a": Shift(
        "tfds:imagenet_a", "test", "ImageNet-A (Hendrycks et al. 2019, arXiv 1907.07174)"
    ),
    "imagenet_r": Shift(
        "tfds:imagenet_r", "test", "ImageNet-R (Hendrycks et al. 2020, arXiv 2006.16241)"
    ),
    "imagenet_sketch": Shift(
        "tfds:imagenet_sketch", "test", "ImageNet-Sketch (Wang et al. 2019, arXiv 1905.13549)"
    ),
}


def parse_shifts(text: str) -> dict[str, Shift]:
    """Returns the shifted test sets that a text names, by name.

    Args:
      text: ``all``, or names of `SHIFTS` and sources ``SOURCE@SPLIT``, joined by commas.

    Raises:
      UserError: an unknown name.
    """
    found: dict[str, Shift] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        source, at, split = name.rpartition("@")
        if name == "all":
            found |= SHIFTS
        elif at:
            found[name] = Shift(source, split, f"the data source {source!r}")
        elif name in SHIFTS:
            found[name] = SHIFTS[name]
        else:
            raise UserError(
                f"--shifts: unknown test set {name!r}.{nearest(name, ('all', *SHIFTS))} Or a data "
                f"source with its split, such as 'folder:PATH@test'"
            )
    return found


def shifted_scores(
    evaluator: Evaluator, observed: dict[str, np.ndarray], text: str, line_file: str = ""
) -> dict[str, dict[str, Any]]:
    """Accuracy on each shifted test set.

    If a set has fewer classes than the model (ImageNet-A has 200), the prediction is the most
    probable of the classes of the set.

    Args:
      evaluator: evaluator of single-label classification.
      observed: what the task observed on the standard test set.
      text: see `parse_shifts`.
      line_file: JSON file, see `read_robustness_lines`; empty for none.

    Returns:
      By name of the set: ``accuracy`` with its Wilson interval ``accuracy_low`` and
      ``accuracy_high``, ``n_scored``, ``standard_accuracy``, and, where the file has a line for the
      set, ``predicted_accuracy`` and ``effective_robustness``, the accuracy minus the predicted
      accuracy. A set that is not installed has ``not_run`` instead, which says what it needs.

    Raises:
      UserError: an unknown name, another task, or an unreadable file.
    """
    require_classification(evaluator.task)
    shifts, lines = parse_shifts(text), read_robustness_lines(Path(line_file)) if line_file else {}
    standard = float(observed["accuracy"].mean(dtype=np.float64))
    found: dict[str, dict[str, Any]] = {}
    for name, shift in shifts.items():
        try:
            options = Options(data_dir=evaluator.config.data.data_dir)
            source = open_source(shift.source, options)
            numbers = class_numbers(
                source.class_names, evaluator.task.class_names, repr(source.name)
            )
            encode, examples = evaluator.encoder_of(source), source.read(shift.split)
        except UserError as error:
            found[name] = {"not_run": f"needs {shift.needs}: {error}"}
            continue

        seen = evaluator.observe_examples(examples, encode)
        own = np.unique(numbers)
        right = own[seen["logits"][:, own].argmax(-1)] == seen["label"]
        low, high = wilson(int(right.sum()), len(right))
        scores: dict[str, Any] = {
            "accuracy": float(right.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "n_scored": len(right),
            "standard_accuracy": standard,
        }
        if name in lines:
            predicted = lines[name].predict(standard)
            scores |= {
                "predicted_accuracy": predicted,
                "effective_robustness": scores["accuracy"] - predicted,
            }
        found[name] = scores
    return found


@dataclasses.dataclass(frozen=True)
class RobustnessLine:
    """logit(shifted accuracy) = slope * logit(standard accuracy) + intercept.

    Attributes:
      slope: slope of the line.
      intercept: logit of the shifted accuracy at a standard accuracy of 0.5.
    """

    slope: float
    intercept: float

    def predict(self, accuracy: float) -> float:
        """Returns the shifted accuracy in [0, 1] that the line predicts for a standard accuracy."""
        if accuracy in (0, 1):
            return float(accuracy)
        value = self.slope * math.log(accuracy / (1 - accuracy)) + self.intercept
        return 1 / (1 + math.exp(-value))


def fit_robustness_line(standard: Sequence[float], shifted: Sequence[float]) -> RobustnessLine:
    """Fits a line to the accuracies of several models by least squares in logit space.

    Args:
      standard: accuracy of each model on the standard test set, in (0, 1).
      shifted: accuracy of each model on the shifted test set, in (0, 1).

    Raises:
      UserError: fewer than two models, equal standard accuracies, or an accuracy out of range.
    """
    x, y = np.asarray(standard, np.float64), np.asarray(shifted, np.float64)
    if len(x) != len(y) or len(x) < 2 or not np.ptp(x) > 0:
        raise UserError(
            f"effective robustness: expected two or more models of different accuracies, found "
            f"{len(x)} and {len(y)} accuracies"
        )
    if not all(0 < v < 1 for v in (*x, *y)):
        raise UserError("effective robustness: expected accuracies between 0 and 1, not percent")
    slope, intercept = np.polyfit(np.log(x / (1 - x)), np.log(y / (1 - y)), 1)
    return RobustnessLine(float(slope), float(intercept))


def read_robustness_lines(path: Path) -> dict[str, RobustnessLine]:
    """Reads the robustness lines of a JSON file, by name of the shifted test set.

    The file holds ``{"cifar10_1": {"slope": …, "intercept": …}}``. In place of the two constants an
    entry may hold ``"models": [[standard, shifted], …]``, accuracies in (0, 1). Other keys, such as
    ``"source"``, are not read.

    Raises:
      UserError: an unreadable file, or an entry of another form.
    """
    lines = {}
    for name, entry in read_json(path).items():
        try:
            if "models" in entry:
                lines[name] = fit_robustness_line(*zip(*entry["models"], strict=True))
            else:
                lines[name] = RobustnessLine(float(entry["slope"]), float(entry["intercept"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: {name}: expected 'slope' and 'intercept', or 'models': pairs of "
                f"accuracies: {error}"
            ) from None
    return lines

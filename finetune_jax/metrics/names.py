"""What scores are called in pages, tables and figures, their bounds, and how they are written.

JSON files keep the raw names.
"""

from __future__ import annotations

import dataclasses
import math
import re

SHARE, CORRELATION = (0.0, 1.0), (-1.0, 1.0)
POSITIVE, UNBOUNDED = (0.0, math.inf), (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Named:
    """A score as people read it.

    Attributes:
      name: name in a sentence, such as ``area under the ROC curve``.
      bounds: smallest and largest possible value; infinite where there is none.
      percent: whether the score is written in per cent.
    """

    name: str
    bounds: tuple[float, float] = UNBOUNDED
    percent: bool = False


def _share(name: str) -> Named:
    return Named(name, SHARE, percent=True)


_NAMES = {
    "accuracy": _share("accuracy"),
    "top5": _share("top-5 accuracy"),
    "balanced_accuracy": _share("balanced accuracy"),
    "knn_accuracy": _share("nearest-neighbour accuracy"),
    "standard_accuracy": _share("accuracy on the standard test set"),
    "predicted_accuracy": _share("accuracy that the line predicts"),
    "effective_robustness": Named("effective robustness", CORRELATION, percent=True),
    "macro_f1": _share("F1, mean over classes"),
    "micro_f1": _share("F1 over all labels"),
    "f1": _share("F1"),
    "precision": _share("precision"),
    "recall": _share("recall"),
    "iou": _share("IoU"),
    "mean_iou": _share("mean IoU"),
    "exact": _share("examples with all labels right"),
    "auroc": _share("area under the ROC curve"),
    "average_precision": _share("average precision"),
    "ece": _share("expected calibration error"),
    "aurc": _share("area under the risk-coverage curve"),
    "brier": Named("Brier score", (0.0, 2.0)),
    "nll": Named("negative log-likelihood", POSITIVE),
    "loss": Named("loss"),
    "matthews": Named("Matthews correlation", CORRELATION),
    "kappa": Named("quadratic weighted kappa", CORRELATION),
    "pearson": Named("Pearson correlation", CORRELATION),
    "spearman": Named("Spearman correlation", CORRELATION),
    "r2": Named("R²", (-math.inf, 1.0)),
    "rmse": Named("root mean squared error", POSITIVE),
    "mae": Named("mean absolute error", POSITIVE),
    "temperature": Named("temperature", POSITIVE),
    "feature_norm_base": Named("norm of the features of the base", POSITIVE),
    "feature_drift": Named("distance of the features to the base", POSITIVE),
    "feature_drift_relative": Named("the same, relative to the norm of the base", POSITIVE),
    "n": Named("examples"),
    "n_scored": Named("examples scored"),
    "ours": Named("this model"),
    "theirs": Named("other model"),
    "difference": Named("difference, this model minus the other"),
    "difference_low": Named("lower end of its 95 % interval"),
    "difference_high": Named("upper end of its 95 % interval"),
    "p_mcnemar": Named("p-value of McNemar's test"),
    "p_bootstrap": Named("p-value of the paired bootstrap"),
    "only_ours_right": Named("right by this model alone"),
    "only_theirs_right": Named("right by the other model alone"),
}

_PATTERNS = (
    (r"knn(\d+)", "accuracy of {} nearest neighbours"),
    (r"few_shot(1)", "accuracy of a ridge on {} example per class"),
    (r"few_shot(\d+)", "accuracy of a ridge on {} examples per class"),
)


def named(score: str) -> Named:
    """The name of a score; a score of another package is called by its raw name in words."""
    if score in _NAMES:
        return _NAMES[score]
    for pattern, words in _PATTERNS:
        if found := re.fullmatch(pattern, score):
            return _share(words.format(*found.groups()))
    return Named(score.replace("_", " "))


def heading(score: str) -> str:
    """The name of a score for a column or an axis, with ``%`` where values are in per cent."""
    found = named(score)
    return f"{found.name}, %" if found.percent else found.name


def written(score: str, value: float | None, *, sign: bool = False, unit: bool = True) -> str:
    """A value of a score: ``91.3 %``, ``0.8712``, or a dash where it is undefined.

    Args:
      score: raw name of the score.
      value: the value, such as 0.913.
      sign: whether positive values have a plus sign, as differences do. The unit of a difference of
        scores in per cent is points.
      unit: whether the unit is written.
    """
    if value is None or not math.isfinite(value):
        return "–"
    plus = "+" if sign and value > 0 else ""
    if named(score).percent:
        text = f"{plus}{100 * value:.1f}"
        return text + (" points" if sign else " %") if unit else text
    if isinstance(value, int):
        return f"{plus}{value:,}"
    # All numbers of one size have the same form, so that they are easy to compare.
    return f"{plus}{value:.4f}" if not value or 1e-3 <= abs(value) < 1e5 else f"{plus}{value:.3g}"


def with_interval(score: str, value: float, low: float | None, high: float | None) -> str:
    """A value with its interval: ``91.3 % [90.7, 91.8]``; without the interval if it is unknown."""
    text = written(score, value)
    if low is None or high is None or not math.isfinite(low + high):
        return text
    ends = (written(score, end, unit=False) for end in (low, high))
    return f"{text} [{', '.join(ends)}]"

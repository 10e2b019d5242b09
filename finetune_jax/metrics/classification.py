"""Scores of class predictions, from logits or labels; an undefined score is nan."""

from __future__ import annotations

import math

import numpy as np


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the k highest logits, bool[n].

    Equal logits are ordered by class number, as argmax orders them.

    Args:
      logits: f[n, classes].
      labels: i[n].
      k: at least 1; if k is at least the number of classes, every example is right.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    above = (logits > own).sum(1)
    tied_before = ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(1)
    return above + tied_before < k


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts i64[classes, classes]: rows are the labels, columns the predictions."""
    cells = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(cells.ravel(), minlength=classes**2).reshape(classes, classes)


def per_class(table: np.ndarray) -> dict[str, np.ndarray]:
    """``n`` i64[classes] of the labels, and ``precision``, ``recall`` and ``f1`` f64[classes].

    Precision is nan for a class that is never predicted, recall for a class that never occurs, and
    F1 for a class of both kinds.

    Args:
      table: result of `confusion`.
    """
    hits, rows, columns = np.diag(table), table.sum(1), table.sum(0)
    with np.errstate(invalid="ignore"):
        return {
            "n": rows,
            "precision": hits / columns,
            "recall": hits / rows,
            "f1": 2 * hits / (rows + columns),
        }


def balanced_accuracy(table: np.ndarray) -> float:
    """Mean recall over the classes that occur; nan without examples.

    Args:
      table: result of `confusion`.
    """
    counts = table.sum(1)
    seen = counts > 0
    return float(np.mean(np.diag(table)[seen] / counts[seen])) if seen.any() else math.nan


def macro_f1(table: np.ndarray) -> float:
    """Mean F1 over the classes that occur or are predicted; nan without examples."""
    both = table.sum(0) + table.sum(1)
    seen = both > 0
    return float(np.mean(2 * np.diag(table)[seen] / both[seen])) if seen.any() else math.nan


def matthews(table: np.ndarray) -> float:
    """Matthews correlation of several classes (Gorodkin 2004), in [-1, 1].

    0 where all labels, or all predictions, are of one class; nan without examples.
    """
    rows, columns = table.sum(1).astype(float), table.sum(0).astype(float)
    total = rows.sum()
    if not total:
        return math.nan
    covariance = np.trace(table) * total - rows @ columns
    spread = (total**2 - columns @ columns) * (total**2 - rows @ rows)
    return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of two classes; nan if only one class occurs.

    A pair of examples with equal scores counts one half.

    Args:
      scores: f[n], higher for the positive class.
      labels: bool or 0/1 [n].
    """
    from scipy.stats import rankdata

    positive = labels.astype(bool)
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision of two classes; nan without a positive example.

    Examples with equal scores are at one threshold.

    Args:
      scores: f[n], higher for the positive class.
      labels: bool or 0/1 [n].
    """
    from sklearn.metrics import average_precision_score

    if not labels.any():
        return math.nan
    return float(average_precision_score(labels.astype(bool), scores))

"""How far probabilities can be believed: likelihood, calibration error, temperature."""

from __future__ import annotations

import math

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """f64[n, classes]."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels, in nats; nan without examples."""
    if not len(labels):
        return math.nan
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of probabilities and one-hot labels (Brier 1950), from 0 to 2.

    nan without examples.
    """
    if not len(labels):
        return math.nan
    gaps = np.exp(log_softmax(logits))
    gaps[np.arange(len(labels)), labels] -= 1
    return float((gaps**2).sum(-1).mean())


def reliability(
    logits: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(count, mean confidence, accuracy) per bin of equal width; nan where a bin is empty.

    Args:
      logits: f[n, classes].
      labels: i[n].
      bins: from 0 to 1.
    """
    probabilities = np.exp(log_softmax(logits))
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    # Bins are (low, high], as in the definition; a product with their number would round.
    place = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(place, confidence, bins) / counts
        accuracies = np.bincount(place, correct, bins) / counts
    return counts, means, accuracies


def ece(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error, top class, bins of equal width (Guo et al. 2017, 1706.04599)."""
    if not len(labels):
        return math.nan
    counts, means, accuracies = reliability(logits, labels, bins)
    filled = counts > 0
    gaps = np.abs(means[filled] - accuracies[filled])
    return float((counts[filled] * gaps).sum() / counts.sum())


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 that minimises the likelihood loss of logits / T (Guo et al. 2017, 1706.04599).

    Fit it on validation. The loss is convex in 1 / T, so the minimum in [1/100, 100] is found by
    bounded search; where every example is right, it is so low that the loss is 0 in f64. nan
    without examples.
    """
    if not len(labels):
        return math.nan
    from scipy.optimize import minimize_scalar

    values = np.asarray(logits, np.float64)
    found = minimize_scalar(
        lambda log_t: nll(values / math.exp(log_t), labels),
        bounds=(-math.log(100), math.log(100)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


def selective(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coverage f[n], risk f[n]): error among the share of examples predicted most confidently.

    Examples of equal confidence count with their mean error, so that their order does not matter.
    Both are empty without examples.
    """
    probabilities = np.exp(log_softmax(logits))
    _, group = np.unique(-probabilities.max(-1), return_inverse=True)
    sizes = np.bincount(group)
    wrong = np.repeat(np.bincount(group, probabilities.argmax(-1) != labels) / sizes, sizes)
    kept = np.arange(1, len(labels) + 1)
    return kept / len(labels), np.cumsum(wrong) / kept


def area_under_risk(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean risk over all coverages (AURC, Geifman and El-Yaniv 2017, 1705.08500).

    Lower is better; nan without examples.
    """
    return float(selective(logits, labels)[1].mean()) if len(labels) else math.nan

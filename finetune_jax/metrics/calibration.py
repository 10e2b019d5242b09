"""Quality of predicted probabilities: likelihood, calibration error, temperature, risk."""

from __future__ import annotations

import math

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities f64[n, classes] of logits f[n, classes]."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels, in nats; nan without examples."""
    if not len(labels):
        return math.nan
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance between probabilities and one-hot labels (Brier 1950), in [0, 2].

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
    """Confidence and accuracy of examples that are binned by confidence.

    Confidence is the probability of the predicted class.

    Args:
      logits: f[n, classes].
      labels: i[n].
      bins: number of bins of equal width from 0 to 1.

    Returns:
      (number of examples i64[bins], mean confidence f64[bins], accuracy f64[bins]); the mean and
      the accuracy of an empty bin are nan.
    """
    probabilities = np.exp(log_softmax(logits))
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    # Bins are (low, high], as in the definition; confidence * bins would round at the borders.
    place = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(place, confidence, bins) / counts
        accuracies = np.bincount(place, correct, bins) / counts
    return counts, means, accuracies


def ece(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the predicted class (Guo et al. 2017, arXiv 1706.04599).

    Mean |confidence - accuracy| over the bins of `reliability`, weighted by their numbers of
    examples, in [0, 1]; nan without examples.
    """
    if not len(labels):
        return math.nan
    counts, means, accuracies = reliability(logits, labels, bins)
    filled = counts > 0
    gaps = np.abs(means[filled] - accuracies[filled])
    return float((counts[filled] * gaps).sum() / counts.sum())


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 that minimises `nll` of logits / T (Guo et al. 2017, arXiv 1706.04599).

    T is fitted on the validation split. `nll` is convex in 1 / T, so a bounded search finds its
    minimum in [1/100, 100]. Where every example is right, T is so low that `nll` is 0 in f64. nan
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
    """Risk at each coverage, when only the most confident predictions are kept.

    Examples of equal confidence count with their mean error, so that their order does not matter.

    Returns:
      (coverage f64[n], the share of examples that is kept; risk f64[n], the error rate of those
      examples); both are empty without examples.
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

"""A linear probe that is solved instead of trained: ridge regression or logistic regression.

Ridge regression has a closed form; logistic regression is solved by L-BFGS. The strength of the
regularisation is chosen on the validation split among a range of values, as in the evaluation of
Kumar et al. 2022 (arXiv 2202.10054), who take C from 1e-7 to 1e2.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

Head = dict[str, np.ndarray]
"""``kernel`` f32[width, classes] and ``bias`` f32[classes]."""


def solve(
    method: str,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> tuple[Head, dict[str, Any]]:
    """Fits the head of a classifier on features.

    Args:
      method: ``lbfgs`` (multinomial logistic regression, scikit-learn) or ``ridge`` (least squares
        on one-hot targets).
      train: features f32[n, width] and labels i32[n].
      validation: features and labels of the validation split, as for `train`. The strength with
        the highest validation accuracy is chosen, and among equals the lowest validation loss.
      classes: number of columns of the head. A class without a training example is never predicted.

    Returns:
      (head, report). The report has ``method``; ``path``, a list of the values that were tried,
      each with its strength, validation accuracy, validation loss and whether the solver converged;
      and ``chosen``, the entry of the path that was chosen.
    """
    candidates = _logistic(*train, classes) if method == "lbfgs" else _ridge(*train, classes)
    heads: list[Head] = []
    path: list[dict[str, Any]] = []
    features, labels = validation
    for strength, head, converged in candidates:
        logits = features.astype(np.float64) @ head["kernel"] + head["bias"]
        accuracy = float((logits.argmax(-1) == labels).mean())
        shifted = logits - logits.max(-1, keepdims=True)
        likelihood = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(-1))
        loss = float(-likelihood.mean())
        path.append(
            {"strength": strength, "accuracy": accuracy, "loss": loss, "converged": converged}
        )
        heads.append(head)
    best = max(range(len(path)), key=lambda i: (path[i]["accuracy"], -path[i]["loss"]))
    head = {name: value.astype(np.float32) for name, value in heads[best].items()}
    return head, {"method": method, "path": path, "chosen": path[best]}


Candidates = Iterator[tuple[float, Head, bool]]
"""(strength, head, whether the solver converged) of each value that is tried."""


def _logistic(features: np.ndarray, labels: np.ndarray, classes: int) -> Candidates:
    """Multinomial logistic regression; the strength is scikit-learn's C."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="lbfgs", max_iter=1000, warm_start=True)
    for strength in np.logspace(-7, 2, 19):
        model.set_params(C=strength)
        with warnings.catch_warnings():  # the report says whether the solver converged
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features.astype(np.float64), labels)
        converged = bool(np.max(model.n_iter_) < model.max_iter)
        kernel, bias = model.coef_.T, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn has one column for two classes
            kernel, bias = np.hstack([-kernel, kernel]) / 2, np.array([-bias[0], bias[0]]) / 2
        yield float(strength), _place(kernel, bias, model.classes_, classes), converged


def _ridge(features: np.ndarray, labels: np.ndarray, classes: int) -> Candidates:
    """Least squares on one-hot targets; the strength is the factor of the squared norm."""
    x, seen = features.astype(np.float64), np.unique(labels)
    y = (labels[:, None] == seen).astype(np.float64)
    mean_x, mean_y = x.mean(0), y.mean(0)
    values, vectors = np.linalg.eigh((x - mean_x).T @ (x - mean_x) / len(x))
    projected = vectors.T @ ((x - mean_x).T @ (y - mean_y) / len(x))
    for strength in np.logspace(-8, 4, 25) * max(values[-1], 1e-30):
        kernel = vectors @ (projected / (np.maximum(values, 0) + strength)[:, None])
        yield float(strength), _place(kernel, mean_y - mean_x @ kernel, seen, classes), True


def _place(kernel: np.ndarray, bias: np.ndarray, seen: np.ndarray, classes: int) -> Head:
    """The head of all classes from columns of the classes `seen` in training.

    The bias of the other classes is so low that they are never predicted.
    """
    all_kernels = np.zeros((kernel.shape[0], classes))
    all_biases = np.full(classes, bias.min() - 30.0)
    all_kernels[:, seen], all_biases[seen] = kernel, bias
    return {"kernel": all_kernels, "bias": all_biases}

"""The linear probe solved instead of trained: closed-form ridge and L-BFGS logistic regression.

The strength of the regularisation is chosen on validation along a path, as in the evaluation of
Kumar et al. 2022 (arXiv 2202.10054), who take C from 1e-7 to 1e2.
"""

from __future__ import annotations

import warnings
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
    """Fits the head on features.

    Args:
      method: ``lbfgs`` (multinomial logistic regression, scikit-learn) or ``ridge`` (least squares
        on one-hot targets).
      train: features f32[n, width] and labels i32[n].
      validation: likewise; decides the strength: highest accuracy, then lowest loss.
      classes: columns of the head. A class without a training example is never predicted.

    Returns:
      (head, report): the report has ``method``, ``path`` (strength, validation accuracy and loss,
      whether the solver converged) and ``chosen``.
    """
    candidates = _logistic(*train, classes) if method == "lbfgs" else _ridge(*train, classes)
    best: tuple[tuple[float, float], Head] | None = None
    path, chosen = [], 0
    features, labels = validation
    for number, (strength, head, converged) in enumerate(candidates):
        logits = features.astype(np.float64) @ head["kernel"] + head["bias"]
        accuracy = float((logits.argmax(-1) == labels).mean())
        shifted = logits - logits.max(-1, keepdims=True)
        likelihood = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(-1))
        loss = float(-likelihood.mean())
        path.append(
            {"strength": strength, "accuracy": accuracy, "loss": loss, "converged": converged}
        )
        if best is None or (accuracy, -loss) > best[0]:
            best, chosen = ((accuracy, -loss), head), number
    head = {name: value.astype(np.float32) for name, value in best[1].items()}
    return head, {"method": method, "path": path, "chosen": path[chosen]}


def _logistic(features: np.ndarray, labels: np.ndarray, classes: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="lbfgs", max_iter=1000, warm_start=True)
    for strength in np.logspace(-7, 2, 19):
        model.set_params(C=strength)
        with warnings.catch_warnings():  # said in the report instead
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features.astype(np.float64), labels)
        converged = bool(np.max(model.n_iter_) < model.max_iter)
        kernel, bias = model.coef_.T, model.intercept_
        if len(model.classes_) == 2:  # one column stands for two
            kernel, bias = np.hstack([-kernel, kernel]) / 2, np.array([-bias[0], bias[0]]) / 2
        yield float(strength), _place(kernel, bias, model.classes_, classes), converged


def _ridge(features: np.ndarray, labels: np.ndarray, classes: int) -> Any:
    x, seen = features.astype(np.float64), np.unique(labels)
    y = (labels[:, None] == seen).astype(np.float64)
    mean_x, mean_y = x.mean(0), y.mean(0)
    values, vectors = np.linalg.eigh((x - mean_x).T @ (x - mean_x) / len(x))
    projected = vectors.T @ ((x - mean_x).T @ (y - mean_y) / len(x))
    for strength in np.logspace(-8, 4, 25) * max(values[-1], 1e-30):
        kernel = vectors @ (projected / (np.maximum(values, 0) + strength)[:, None])
        yield float(strength), _place(kernel, mean_y - mean_x @ kernel, seen, classes), True


def _place(kernel: np.ndarray, bias: np.ndarray, seen: np.ndarray, classes: int) -> Head:
    whole = np.zeros((kernel.shape[0], classes))
    offsets = np.full(classes, bias.min() - 30.0)
    whole[:, seen], offsets[seen] = kernel, bias
    return {"kernel": whole, "bias": offsets}

"""The solved linear probe against independent solvers, and the choice of its strength."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import Ridge

from finetune_jax.training.head_solver import solve


@pytest.fixture(scope="module")
def data():
    """Three noisy clusters: (train, validation), each features f32[n, 6] and labels."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 6))

    def draw(n):
        labels = rng.integers(0, 3, n).astype(np.int32)
        return (centres[labels] + rng.normal(size=(n, 6))).astype(np.float32), labels

    return draw(120), draw(80)


def test_ridge_is_scikit_learns(data):
    (x, y), validation = data
    head, report = solve("ridge", (x, y), validation, 3)
    # Our objective divides the squared error by n.
    reference = Ridge(alpha=report["chosen"]["strength"] * len(x))
    reference.fit(x.astype(np.float64), np.eye(3)[y])
    np.testing.assert_allclose(head["kernel"], reference.coef_.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head["bias"], reference.intercept_, rtol=1e-4, atol=1e-6)


def test_lbfgs_is_the_minimum_of_its_objective(data):
    (x, y), validation = data
    head, report = solve("lbfgs", (x, y), validation, 3)
    strength = report["chosen"]["strength"]

    def objective(flat):
        kernel, bias = flat[:18].reshape(6, 3), flat[18:]
        logits = x @ kernel + bias
        logits = logits - logits.max(1, keepdims=True)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
        return strength * losses.sum() + 0.5 * (kernel**2).sum()

    ours = objective(np.concatenate([head["kernel"].ravel(), head["bias"]]).astype(np.float64))
    best = minimize(objective, np.zeros(21), method="BFGS", options={"gtol": 1e-8})
    assert ours == pytest.approx(best.fun, rel=1e-5)


@pytest.mark.parametrize("method", ["lbfgs", "ridge"])
def test_strength_is_chosen_on_validation_alone(data, method):
    train, (x, y) = data
    head, report = solve(method, train, (x, y), 3)
    accuracy = float(((x @ head["kernel"] + head["bias"]).argmax(1) == y).mean())
    assert report["chosen"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy == max(row["accuracy"] for row in report["path"])
    # Other validation labels may change the chosen strength, but not the candidates.
    _, other = solve(method, train, (x, (y + 1) % 3), 3)
    assert [r["strength"] for r in other["path"]] == [r["strength"] for r in report["path"]]


@pytest.mark.parametrize("method", ["lbfgs", "ridge"])
def test_a_class_without_examples_is_never_predicted(data, method):
    (x, y), validation = data
    head, _ = solve(method, (x, y), validation, 5)
    assert head["kernel"].shape == (6, 5)
    assert ((validation[0] @ head["kernel"] + head["bias"]).argmax(1) < 3).all()

"""Temperature scaling and selective prediction of observations."""

import numpy as np
import pytest

from finetune_jax.errors import UserError
from finetune_jax.evaluation.confidence import selective_scores, temperature_scores
from finetune_jax.tasks import Classification, Regression

TASK = Classification(("a", "b", "c"))


def observed(n, seed, heat=1.0):
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(n, 3))
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = (generator.random((n, 1)) > chances.cumsum(-1)).sum(-1)
    return {"logits": (logits * heat).astype(np.float32), "label": labels}


def test_the_temperature_comes_from_validation_and_helps_on_test():
    found = temperature_scores(TASK, observed(4000, 0, 3), observed(4000, 1, 3))
    assert found["temperature"] == pytest.approx(3, rel=0.1)
    for name in ("nll", "ece", "brier"):
        assert found[f"{name}_after"] < found[f"{name}_before"]
    same = temperature_scores(TASK, observed(4000, 0), observed(4000, 1, 3))
    # The fit does not depend on the scored split.
    assert same["temperature"] == pytest.approx(1, rel=0.1)


def test_a_selective_curve_ends_at_the_error_of_all():
    seen = observed(1000, 0)
    found = selective_scores(TASK, seen)
    error = (seen["logits"].argmax(-1) != seen["label"]).mean()
    assert found["coverage"] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1]
    )
    assert found["risk"][-1] == pytest.approx(error)
    assert found["risk"][0] < error
    assert found["threshold"] == sorted(found["threshold"], reverse=True)


def test_a_task_without_classes_has_no_confidence():
    with pytest.raises(UserError, match="'regression'"):
        selective_scores(Regression(), {"label": np.zeros(3)})

"""The sentences about a run say what its figures say."""

import numpy as np
import pytest

from finetune_jax.metrics import names
from finetune_jax.reporting.sentences import against, sentences
from finetune_jax.tasks.classification import Classification


def said(right, n, classes=2):
    """Sentences about a classifier that is right on the first examples of balanced classes."""
    label = np.arange(n) % classes
    predicted = np.where(np.arange(n) < right, label, (label + 1) % classes)
    observed = {
        "logits": np.eye(classes, dtype=np.float32)[predicted],
        "label": label,
        "accuracy": (predicted == label).astype(np.float32),
        "loss": np.ones(n, np.float32),
    }
    task = Classification(tuple("abcd"[:classes]))
    return sentences({"split": "test", "n_scored": n, **task.scores(observed)}, task, observed)


def test_the_score_its_interval_and_what_it_does_not_cover():
    assert said(90, 100) == [
        "Accuracy is 90.0 % [82.6, 94.5] on 100 examples of the split test (95 % interval over "
        "examples; one run, so training again with another seed is not covered)."
    ]


@pytest.mark.parametrize(
    ("right", "expected"),
    [(55, "That is not told apart from always giving the most frequent class, which is right for "
          "50.0 %."),
     (20, "Always giving the most frequent class is right more often, for 50.0 %.")],
)  # fmt: skip
def test_a_score_that_needs_no_model_is_said(right, expected):
    assert said(right, 100)[1:] == [expected]


@pytest.mark.parametrize(
    ("metric", "better", "gap", "p", "expected"),
    [
        ("accuracy", "max", 0.021, 0.004,
         "It is better than runs/b on the same examples: difference +2.1 points [+1.1, +3.1], "
         "p = 0.004."),
        ("accuracy", "max", -0.021, 0.004, "It is worse than runs/b"),
        ("rmse", "min", -0.021, 0.004, "It is better than runs/b"),
        ("accuracy", "max", 0.021, 0.05, "It is not told apart from runs/b"),
    ],
)  # fmt: skip
def test_another_model_is_better_only_where_the_test_says_so(metric, better, gap, p, expected):
    test = "p_mcnemar" if metric == "accuracy" else "p_bootstrap"
    found = {"metric": metric, "better": better, "difference": gap, "other": "runs/b", test: p,
             "difference_low": gap - 0.01, "difference_high": gap + 0.01}  # fmt: skip
    assert against(found).startswith(expected)


def test_scores_have_names_that_people_know():
    assert names.named("aurc").name == "area under the risk-coverage curve"
    assert names.named("p_mcnemar").name == "p-value of McNemar's test"
    assert names.heading("few_shot10") == "accuracy of a ridge on 10 examples per class, %"
    assert names.named("my_score").name == "my score"
    assert names.written("accuracy", 0.9134) == "91.3 %"
    assert names.written("accuracy", -0.004, sign=True) == "-0.4 points"
    assert names.written("loss", None) == "–" and names.written("n", 1200) == "1,200"


def test_every_score_of_a_classifier_has_a_name():
    task = Classification(tuple("abcdefgh"))
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(60, 8)).astype(np.float32)
    label = np.arange(60) % 8
    observed = {"logits": logits, "label": label, "loss": np.ones(60, np.float32),
                "accuracy": (logits.argmax(-1) == label).astype(np.float32)}  # fmt: skip
    raw = [k for k in task.report(observed) if not k.endswith(("_low", "_high"))]
    assert len(raw) > 8
    assert all(name in names._NAMES for name in raw)

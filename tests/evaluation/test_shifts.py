"""Shifted test sets: scores by class name, sets that are not installed, effective robustness."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from finetune_jax.data.classes import class_numbers
from finetune_jax.data.sources import Source
from finetune_jax.errors import UserError
from finetune_jax.evaluation import shifts
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.evaluation.shifts import (
    SHIFTS,
    RobustnessLine,
    fit_robustness_line,
    parse_shifts,
    read_robustness_lines,
    shifted_scores,
)
from finetune_jax.metrics.intervals import wilson
from finetune_jax.tasks import Classification
from finetune_jax.tasks.relabel import host_part


def test_names_sources_and_all():
    assert parse_shifts("all") == SHIFTS
    assert list(parse_shifts("cifar10_1, digits@validation")) == ["cifar10_1", "digits@validation"]
    assert parse_shifts("") == {}
    with pytest.raises(UserError, match="Did you mean 'cifar10_1'"):
        parse_shifts("cifar10.1")


def test_a_set_that_is_there_is_scored_and_one_that_is_not_says_what_it_needs(short_run, tmp_path):
    evaluator = open_run(short_run, data_dir=str(tmp_path))
    line = tmp_path / "lines.json"
    line.write_text(json.dumps({"digits@test[:50]": {"slope": 1, "intercept": 0}}))
    observed = evaluator.observe("test")
    found = shifted_scores(evaluator, observed, "cifar10_1,digits@test[:50]", str(line))
    assert "CIFAR-10.1" in found["cifar10_1"]["not_run"]
    scores = found["digits@test[:50]"]
    assert scores["accuracy"] == scores["standard_accuracy"] == observed["accuracy"].mean()
    assert scores["n_scored"] == 50
    assert scores["effective_robustness"] == pytest.approx(0)


def test_effective_robustness_is_beyond_the_line_among_the_classes_of_the_set(
    monkeypatch, tmp_path
):
    # With the outputs (1, 9, 2) the most probable class is a bee, and the set has no bees.
    logits = np.array([[1, 9, 2], [3, 9, 2], [0, 0, 5], [4, 0, 1], [0, 1, 8]], np.float32)
    labels = np.array([2, 2, 2, 0, 0])
    encoded = []

    def observe_examples(examples, encode):
        encoded.extend(encode(example)["label"] for example in examples)
        return {"logits": logits, "label": labels}

    task = Classification(("ant", "bee", "cat"))
    evaluator = SimpleNamespace(
        task=task,
        config=SimpleNamespace(data=SimpleNamespace(data_dir="")),
        encoder_of=lambda source: host_part(task, source.class_names, "x").host,
        observe_examples=observe_examples,
    )
    examples = [{"label": n} for n in (0, 0, 0, 1, 1)]
    source = SimpleNamespace(name="made", class_names=("cat", "ant"), read=lambda split: examples)
    monkeypatch.setattr(shifts, "open_source", lambda name, options: source)
    line = tmp_path / "lines.json"
    line.write_text(json.dumps({"made@test": {"slope": 0.8, "intercept": -0.5}}))
    observed = {"accuracy": np.array([1, 1, 1, 0], np.float32)}
    (found,) = shifted_scores(evaluator, observed, "made@test", str(line)).values()
    assert encoded == [2, 2, 2, 0, 0]
    assert found["accuracy"] == pytest.approx(3 / 5) and found["n_scored"] == 5
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(3, 5)
    assert found["standard_accuracy"] == 0.75
    # logit(0.75) = ln 3.
    predicted = 1 / (1 + 3**-0.8 * np.exp(0.5))
    assert found["predicted_accuracy"] == pytest.approx(predicted)
    assert found["effective_robustness"] == pytest.approx(3 / 5 - predicted)


def test_classes_are_matched_by_name():
    source = Source("made", ("cat", "ant"), {}, None)
    assert class_numbers(source.class_names, ("ant", "bee", "cat"), "x") == (2, 0)
    with pytest.raises(UserError, match="does not know: cat"):
        class_numbers(source.class_names, ("ant", "bee"), "x")


def test_a_line_is_fitted_in_logit_space():
    standard = np.array([0.6, 0.7, 0.8, 0.9])
    shifted = np.array([RobustnessLine(0.8, -0.5).predict(a) for a in standard])
    found = fit_robustness_line(standard, shifted)
    assert (found.slope, found.intercept) == pytest.approx((0.8, -0.5))
    # Half way between two ordinary models in logits, not in accuracy.
    assert RobustnessLine(0.8, -0.5).predict(0.9) == pytest.approx(1 / (1 + 9**-0.8 * np.e**0.5))
    assert RobustnessLine(1, 0).predict(0.37) == pytest.approx(0.37)
    assert RobustnessLine(2, 1).predict(1.0) == 1 and RobustnessLine(2, 1).predict(0.0) == 0


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"slope": 1}, "intercept"),
        ({"models": [[0.5, 0.4]]}, "two or more"),
        ({"models": [[50, 40], [60, 50]]}, "not percent"),
        ({"models": [1, 2]}, "models"),
        (3, "slope"),
    ],
)
def test_a_file_without_a_line_is_refused(tmp_path, entry, words):
    path = tmp_path / "lines.json"
    path.write_text(json.dumps({"cifar10_1": entry}))
    with pytest.raises(UserError, match=words):
        read_robustness_lines(path)


def test_models_in_a_file_are_fitted(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text(json.dumps({"x": {"models": [[0.6, 0.5], [0.8, 0.7]], "source": "made"}}))
    assert read_robustness_lines(path)["x"].predict(0.6) == pytest.approx(0.5)


@pytest.mark.slow
def test_published_models_lie_on_a_line_in_logit_space():
    folder = os.environ.get("FINETUNE_JAX_DATA")
    if not folder:
        pytest.skip("not run: set FINETUNE_JAX_DATA to the folder with the published tables")

    def table(name):
        with Path(folder, "tables", f"timm_results-{name}.csv").open() as file:
            return {r["model"]: float(r["top1"]) / 100 for r in csv.DictReader(file)}

    first, second = table("imagenet"), table("imagenetv2-matched-frequency")
    models = sorted(first.keys() & second.keys())
    standard = [first[m] for m in models]
    line = fit_robustness_line(standard, [second[m] for m in models])
    errors = np.array([second[m] - line.predict(first[m]) for m in models])
    assert len(models) > 500
    assert np.abs(errors).mean() < 0.01
    # Recht et al. 2019 (arXiv 1902.10811): 11 to 14 points lost around 76 %.
    assert 0.11 < 0.76 - line.predict(0.76) < 0.14

"""Closed-form probes: right on known features, chosen by text, logged during training."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from finetune_jax.errors import UserError
from finetune_jax.metrics.probes import few_shot, knn, parse_probes, probe_scores, sample


def blobs(n, seed=0, spread=0.6, width=12, classes=4):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, width))
    labels = generator.integers(0, classes, n)
    noise = spread * generator.normal(size=(n, width))
    return (centres[labels] + noise).astype(np.float32), labels


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100))
def test_neighbours_agree_with_scikit_learn(k, seed):
    train, test = blobs(60, seed, 1.5), blobs(40, seed + 1, 1.5)

    def weights(distance):  # scikit-learn's distance is 1 - cosine
        return np.exp((1 - distance) / 0.07)

    theirs = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(*train).score(*test)
    assert knn(train, test, k=k, temperature=0.07) == pytest.approx(theirs, abs=1e-9)


def test_neighbours_are_found_whatever_the_chunks(monkeypatch):
    train, test = blobs(200), blobs(300, 1)
    whole = knn(train, test)
    monkeypatch.setattr("finetune_jax.metrics.probes._CHUNK", 7)
    assert knn(train, test) == whole


def test_few_shot_is_the_ridge_of_scikit_learn_on_its_examples():
    features, labels = blobs(8)
    train, test = (features, labels), blobs(200, 1)
    x = features - features.mean(0, dtype=np.float64)
    scale = np.linalg.norm(x, axis=1).mean()
    model = Ridge(alpha=1.0).fit(x / scale, 2.0 * (labels[:, None] == np.unique(labels)) - 1)
    outputs = model.predict((test[0] - features.mean(0, dtype=np.float64)) / scale)
    theirs = (np.unique(labels)[outputs.argmax(1)] == test[1]).mean()
    assert few_shot(train, test, shots=100) == pytest.approx(theirs, abs=1e-9)


def test_more_shots_help_and_separated_classes_are_distinguished():
    train, test = blobs(400), blobs(400, 1)
    probes = parse_probes("knn(k=5) + few_shot(1) + few_shot(20, draws=2)")
    scores = probe_scores(probes, train, test)
    assert scores.keys() == {"knn5", "few_shot1", "few_shot20"}
    assert scores["few_shot1"] < scores["few_shot20"] > 0.9
    assert probe_scores(probes, train, test) == scores
    assert knn(train, train, k=1) == 1


def test_a_class_without_training_examples_is_never_predicted():
    features, labels = blobs(100)
    some = labels != 2
    train, test = (features[some], labels[some]), (features[~some], labels[~some])
    assert knn(train, test) == few_shot(train, test, shots=5) == 0


def test_nothing_to_score_or_to_learn_from_is_nan():
    some, none = blobs(10), (np.zeros((0, 12), np.float32), np.zeros(0, int))
    for train, test in ((some, none), (none, some)):
        assert math.isnan(knn(train, test))
        assert math.isnan(few_shot(train, test, shots=2))


@pytest.mark.parametrize(
    "text, words",
    [
        ("kn", "Did you mean 'knn'"),
        ("knn(k=0)", "at least 1, found 0"),
        ("knn(kk=3)", "Did you mean 'k'"),
        ("knn(3, k=3)", "expected one number"),
        ("few_shot(5, l2=-1)", "positive"),
        ("few_shot(5, draws=1.5)", "whole number"),
        ("knn + knn(20)", "each probe once"),
        ("knn(True)", "whole number"),
    ],
)
def test_a_wrong_probe_is_refused_with_words(text, words):
    with pytest.raises(UserError, match=words):
        parse_probes(text)


def test_a_sample_is_the_same_every_time_and_whole_where_it_fits():
    assert sample(5, 0).tolist() == sample(5, 9).tolist() == [0, 1, 2, 3, 4]
    few = sample(1000, 10)
    assert len(np.unique(few)) == 10
    assert few.tolist() == sample(1000, 10).tolist()


def test_probes_are_logged_at_each_evaluation_of_a_run(short_run):
    rows = [json.loads(x) for x in (short_run / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if row["split"] == "validation"]
    assert logged and all(0 <= row["knn3"] <= 1 and 0 <= row["few_shot2"] <= 1 for row in logged)


def test_a_probe_with_fewer_examples_than_its_number_says_so():
    labels = np.array([0, 0, 0, 1, 1])
    (knn_,), (shots,) = parse_probes("knn(6)"), parse_probes("few_shot(3)")
    assert knn_.shortfall(labels).startswith("knn6: there are only 5 training examples, and the")
    assert shots.shortfall(labels).startswith("few_shot3: there are only 2 of a class, and the")
    (knn_,), (shots,) = parse_probes("knn(5)"), parse_probes("few_shot(2)")
    assert knn_.shortfall(labels) == shots.shortfall(labels) == ""

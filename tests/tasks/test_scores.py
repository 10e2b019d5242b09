"""Scores agree with scikit-learn and scipy on random observations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from finetune_jax.files import plain
from finetune_jax.tasks import (
    Classification,
    MultiLabel,
    Ordinal,
    Regression,
    Segmentation,
    SimCLR,
    Similarity,
    multilabel,
)
from finetune_jax.tasks.contrastive import nearest_agree

RANDOM = np.random.default_rng(1)
N = 60


def observed(task, outputs, batch):
    return {name: np.asarray(x) for name, x in task.observe(outputs, batch).items()}


def test_classification():
    task = Classification(tuple("abcdefg"))
    logits = RANDOM.normal(size=(N, 7)).astype(np.float32)
    labels = RANDOM.integers(0, 7, N).astype(np.int32)
    found = task.report(observed(task, logits, {"label": labels}))
    predicted = logits.argmax(1)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "loss": sk.log_loss(labels, probabilities, labels=range(7)),
        "top5": sk.top_k_accuracy_score(labels, logits, k=5, labels=range(7)),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "matthews": sk.matthews_corrcoef(labels, predicted),
        "auroc": np.mean([sk.roc_auc_score(labels == i, probabilities[:, i]) for i in range(7)]),
        "average_precision": np.mean(
            [sk.average_precision_score(labels == i, probabilities[:, i]) for i in range(7)]
        ),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


def test_multilabel():
    task = MultiLabel(tuple("abc"))
    logits = RANDOM.normal(size=(N, 3)).astype(np.float32)
    hot = (RANDOM.random((N, 3)) < 0.4).astype(np.float32)
    found = task.report(observed(task, logits, {"label": hot}))
    expected = {
        "average_precision": sk.average_precision_score(hot, logits, average="macro"),
        "auroc": sk.roc_auc_score(hot, logits, average="macro"),
        "micro_f1": sk.f1_score(hot, logits > 0, average="micro"),
        "exact": sk.accuracy_score(hot, logits > 0),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["average_precision_low"] < found["average_precision_high"]


def test_unknown_labels_are_in_no_score(monkeypatch, rng):
    # One sample with every example once, in place of the many resamples of an interval.
    monkeypatch.setattr(multilabel, "bootstrap", lambda f, n, **_: (f(np.arange(n)), 2.0))
    task = MultiLabel(tuple("abcd"))
    logits = rng.normal(size=(N, 4)).astype(np.float32)
    hot = (rng.random((N, 4)) < 0.4).astype(np.float32)
    unknown = rng.random((N, 4)) < 0.3
    unknown[:, 3] = True  # a label that is unknown in every example
    unknown[unknown.all(1), 0] = False
    found = task.report(observed(task, logits, {"label": np.where(unknown, -1, hot)}))
    of = [(hot[~x, i], logits[~x, i]) for i, x in enumerate(unknown.T[:3])]
    known = ~unknown
    right = ((logits > 0) == (hot > 0.5)) | unknown
    expected = {
        "average_precision": np.mean([sk.average_precision_score(*pair) for pair in of]),
        "auroc": np.mean([sk.roc_auc_score(*pair) for pair in of]),
        "micro_f1": sk.f1_score(hot[known], logits[known] > 0),
        "exact": right.all(1).mean(),
    }
    expected["average_precision_low"] = expected["average_precision"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_ordinal():
    task = Ordinal(tuple("abcd"))
    outputs = -np.sort(RANDOM.normal(size=(N, 3)), axis=1).astype(np.float32)
    labels = RANDOM.integers(0, 4, N).astype(np.int32)
    found = task.report(observed(task, outputs, {"label": labels}))
    predicted = (outputs > 0).sum(1)
    kappa = sk.cohen_kappa_score(labels, predicted, weights="quadratic", labels=range(4))
    assert found["kappa"] == pytest.approx(kappa, abs=1e-6)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(labels, predicted), abs=1e-6)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-6)
    assert [r["label"] for r in task.read(outputs)] == ["abcd"[i] for i in predicted]


def test_regression():
    task = Regression(mean=3.0, std=2.0)
    outputs = RANDOM.normal(size=(N, 1)).astype(np.float32)
    labels = (2 * outputs[:, 0] + 3 + RANDOM.normal(size=N)).astype(np.float32)
    found = task.report(observed(task, outputs, {"label": labels}))
    values = 2 * outputs[:, 0] + 3
    expected = {
        "rmse": np.sqrt(sk.mean_squared_error(labels, values)),
        "mae": sk.mean_absolute_error(labels, values),
        "r2": sk.r2_score(labels, values),
        "pearson": scipy.stats.pearsonr(labels, values)[0],
        "spearman": scipy.stats.spearmanr(labels, values)[0],
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"], name
    assert [r["value"] for r in task.read(outputs)] == pytest.approx(values.tolist())


def test_segmentation_of_more_classes_than_bytes_can_multiply():
    names = tuple(f"class {i}" for i in range(40))
    task = Segmentation(names, size=8)
    grid = RANDOM.normal(size=(5, 8, 8, 40)).astype(np.float32)
    masks = RANDOM.integers(0, 40, (5, 8, 8)).astype(np.uint8)
    masks[0, :3] = 255
    found = task.report(observed(task, grid, {"class_map": masks}))
    counted = masks != 255
    predicted = grid.argmax(-1)
    iou = sk.jaccard_score(masks[counted], predicted[counted], average="macro")
    assert found["mean_iou"] == pytest.approx(iou, abs=1e-6)
    accuracy = sk.accuracy_score(masks[counted], predicted[counted])
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert sum(task.read(grid[:1])[0]["shares"].values()) == pytest.approx(1)
    # The loss is 0 where no label is known.
    empty = np.full((1, 8, 8), 255, np.uint8)
    assert task.per_example(grid[:1], {"class_map": empty})["loss"] == 0


def test_segmentation_scores_at_the_size_of_the_picture():
    task = Segmentation(("left", "right"), size=8)
    grid = np.zeros((1, 2, 2, 2), np.float32)
    grid[:, :, 0, 0] = grid[:, :, 1, 1] = 5
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[:, :, 4:] = 1
    assert task.scores(observed(task, grid, {"class_map": mask}))["mean_iou"] == 1


def test_similarity():
    task = Similarity(6)
    outputs = RANDOM.normal(size=(2 * N, 6)).astype(np.float32)
    labels = RANDOM.random(N).astype(np.float32)
    found = task.report(observed(task, outputs, {"label": labels}))
    cosines = sk.pairwise.paired_cosine_distances(outputs[::2], outputs[1::2])
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(-cosines, labels)[0], abs=1e-6)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(-cosines, labels)[0], abs=1e-5)
    assert [r["cosine"] for r in task.read(outputs)] == pytest.approx(1 - cosines, abs=1e-5)


def test_nearest_neighbours_leave_the_example_itself_out():
    from sklearn.neighbors import KNeighborsClassifier

    features = RANDOM.normal(size=(N, 4))
    labels = RANDOM.integers(0, 3, N)
    right = nearest_agree(features, labels, 5)
    for i in range(N):
        rest = np.arange(N) != i
        model = KNeighborsClassifier(5, metric="cosine").fit(features[rest], labels[rest])
        assert right[i] == (model.predict(features[i : i + 1])[0] == labels[i])
    assert not nearest_agree(features[:1], labels[:1], 5).any()
    assert nearest_agree(features[[0, 0, 0]], np.array([1, 1, 1]), 20).all()


def test_contrastive_scores_do_not_depend_on_the_batch_size():
    task = SimCLR(("a", "b"))
    outputs = RANDOM.normal(size=(2 * N, 6)).astype(np.float32)
    features = RANDOM.normal(size=(2 * N, 6)).astype(np.float32)
    labels = RANDOM.integers(0, 2, N).astype(np.int32)

    def seen(size):
        parts = [
            observed(
                task,
                outputs[2 * i : 2 * (i + size)],
                {"label": labels[i : i + size], "features": features[2 * i : 2 * (i + size)]},
            )
            for i in range(0, N, size)
        ]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    assert task.scores(seen(N)) == pytest.approx(task.scores(seen(7)))


def test_scores_of_each_class_are_those_of_scikit_learn():
    names = ("猫", "قط", "\x1b[31m", "never seen")
    labels = RANDOM.integers(0, 3, N).astype(np.int32)
    logits = RANDOM.normal(size=(N, 4)).astype(np.float32)
    logits[:, 3] = -9
    task = Classification(names)
    found = task.per_class(observed(task, logits, {"label": labels}))
    outputs = -np.sort(RANDOM.normal(size=(N, 3)), axis=1).astype(np.float32)
    ordinal = Ordinal(names)
    ranked = ordinal.per_class(observed(ordinal, outputs, {"label": labels}))
    for each, predicted in ((found, logits.argmax(1)), (ranked, (outputs > 0).sum(1))):
        scores = sk.precision_recall_fscore_support(
            labels, predicted, labels=range(4), zero_division=np.nan
        )
        assert list(each) == list(names)
        for i, name in enumerate(names):
            own = each[name]
            assert own["n"] == (labels == i).sum() and isinstance(own["n"], int)
            for score, values in zip(("precision", "recall", "f1"), scores[:3], strict=True):
                if own["n"]:
                    assert own[score] == pytest.approx(values[i], abs=1e-9, nan_ok=True)
        assert np.isnan(each["never seen"]["recall"])
    text = json.dumps(plain({"per_class": found}), allow_nan=False)
    assert text.isprintable() and json.loads(text)["per_class"]["never seen"]["f1"] is None


def test_scores_of_each_label_and_of_each_class_of_pixels():
    task = MultiLabel(tuple("abc"))
    logits = RANDOM.normal(size=(N, 3)).astype(np.float32)
    hot = (RANDOM.random((N, 3)) < 0.4).astype(np.float32)
    found = task.per_class(observed(task, logits, {"label": hot}))
    scores = sk.precision_recall_fscore_support(hot, logits > 0, average=None)
    for i, name in enumerate("abc"):
        expected = dict(
            zip(("precision", "recall", "f1", "n"), (s[i] for s in scores), strict=True)
        )
        expected["average_precision"] = sk.average_precision_score(hot[:, i], logits[:, i])
        assert found[name] == pytest.approx(expected)
    pixels = Segmentation(tuple("abcd"), size=8)
    grid = RANDOM.normal(size=(5, 8, 8, 4)).astype(np.float32)
    masks = RANDOM.integers(0, 3, (5, 8, 8)).astype(np.uint8)
    masks[0, :3], grid[..., 3] = 255, -9
    each = pixels.per_class(observed(pixels, grid, {"class_map": masks}))
    predicted, counted = grid.argmax(-1), masks != 255
    iou = sk.jaccard_score(masks[counted], predicted[counted], average=None)
    recall = sk.recall_score(masks[counted], predicted[counted], average=None)
    for i, name in enumerate("abc"):
        assert each[name]["iou"] == pytest.approx(iou[i])
        assert each[name]["recall"] == pytest.approx(recall[i])
        assert each[name]["n"] == (masks == i).sum()
    assert np.isnan(each["d"]["iou"]) and each["d"]["n"] == 0
    assert Regression().per_class({}) == {}

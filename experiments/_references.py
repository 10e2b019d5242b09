"""Simple references for tasks: what nearest neighbours, linear models or constants score.

Each reference is a function from `Features` to figures by name, on the same examples as a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass
class Features:
    """Features and targets of the training and test examples, input of every reference.

    Attributes:
      train, test: f[n, width]: pixels, or the features that the pretrained head reads; of a pair
        of texts f[n, 2, width], each of length 1.
      train_label, test_label: the task's targets [n, …].
    """

    train: np.ndarray
    test: np.ndarray
    train_label: np.ndarray
    test_label: np.ndarray


Reference = Callable[["Features"], dict[str, str]]


def features_of(config: Any, on: str) -> Features:
    """The features of a config's examples, by the config's own splits and preprocessing.

    Args:
      config: config of the run.
      on: ``pixels``; ``base`` for the features that the head of the pretrained model reads; or
        ``pair`` for these features of each text of a pair.
    """
    import jax

    from finetune_jax.base_variables import load_variables
    from finetune_jax.data.batches import Encoder, eval_batches
    from finetune_jax.data.text import TextPreprocess
    from finetune_jax.evaluation.step import make_forward
    from finetune_jax.setup import open_setup

    setup = open_setup(config)
    key = next(iter(setup.task.abstract(1)), "")
    found = []
    preprocess = setup.preprocess
    if on == "pair":
        assert isinstance(preprocess, TextPreprocess), "pairs are pairs of texts"
        preprocess = dataclasses.replace(preprocess, pairs="apart")
    encode = Encoder((preprocess, setup.task))
    if on != "pixels":
        variables, _ = load_variables(setup)
        forward = jax.jit(make_forward(setup.model, preprocess.device, stop="head"))
    for split in (config.data.train, config.data.test):
        rows, labels = [], []
        for batch in eval_batches(setup.source.read(split), encode, config.eval.batch_size):
            count = int(batch.pop("mask").sum())
            x = np.asarray(batch["image"] if on == "pixels" else forward(variables, batch))
            if on == "pair":
                x = x.reshape(-1, 2, x.shape[-1])
                x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
            rows.append((x.reshape(len(x), -1) if on == "pixels" else x)[:count])
            labels.append(batch[key][:count] if key else np.zeros(count))
        found += [np.concatenate(rows), np.concatenate(labels)]
    return Features(found[0].astype(np.float32), found[2].astype(np.float32), found[1], found[3])


def logistic(f: Features) -> dict[str, str]:
    """Logistic regression and nearest neighbours on frozen features of length 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f.train, f.test))
    names = {
        "logistic regression (C=10)": LogisticRegression(C=10, max_iter=300),
        "20-nearest neighbours": KNeighborsClassifier(20),
    }
    return {
        f"{name} on the same frozen features: accuracy": (
            f"{model.fit(train, f.train_label).score(test, f.test_label):.4f}"
        )
        for name, model in names.items()
    }


def neighbour_class(f: Features) -> dict[str, str]:
    """Accuracy of the nearest neighbour by pixels."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(1).fit(f.train, f.train_label)
    return {"1-nearest neighbour in pixels: accuracy": f"{model.score(f.test, f.test_label):.4f}"}


def neighbour_kappa(f: Features) -> dict[str, str]:
    """Weighted kappa of the nearest neighbour by pixels."""
    from sklearn.metrics import cohen_kappa_score
    from sklearn.neighbors import KNeighborsClassifier

    predicted = KNeighborsClassifier(1).fit(f.train, f.train_label).predict(f.test)
    kappa = cohen_kappa_score(f.test_label, predicted, weights="quadratic")
    return {"1-nearest neighbour in pixels: kappa": f"{kappa:.4f}"}


def neighbour_value(f: Features) -> dict[str, str]:
    """Errors of the mean of three nearest neighbours, and of the mean of all training values."""
    from sklearn.neighbors import KNeighborsRegressor

    predicted = KNeighborsRegressor(3).fit(f.train, f.train_label).predict(f.test)
    rmse = float(np.sqrt(np.mean((predicted - f.test_label) ** 2)))
    flat = float(np.sqrt(np.mean((f.train_label.mean() - f.test_label) ** 2)))
    return {
        "mean of 3 nearest neighbours in pixels: rmse": f"{rmse:.4f}",
        "mean of the training values: rmse": f"{flat:.4f}",
    }


def neighbour_labels(f: Features) -> dict[str, str]:
    """Scores from the share of each label among the five nearest neighbours."""
    from sklearn.metrics import average_precision_score
    from sklearn.neighbors import KNeighborsRegressor

    shares = KNeighborsRegressor(5).fit(f.train, f.train_label).predict(f.test)
    score = average_precision_score(f.test_label, shares, average="macro")
    flat = average_precision_score(f.test_label, np.zeros_like(shares), average="macro")
    return {
        "share among 5 nearest neighbours in pixels: average_precision": f"{score:.4f}",
        "always the same: average_precision": f"{flat:.4f}",
    }


def threshold_and_neighbour(f: Features) -> dict[str, str]:
    """Segments by the threshold that made the masks; the digit is that of the nearest picture."""
    from finetune_jax.metrics.classification import confusion
    from finetune_jax.metrics.segmentation import mean_iou

    def digits(masks: np.ndarray) -> np.ndarray:
        return masks.reshape(len(masks), -1).max(1)

    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(1).fit(f.train, digits(f.train_label))
    ink = f.test_label > 0
    predicted = ink * model.predict(f.test)[:, None, None]
    found = mean_iou(confusion(predicted, f.test_label, 11))
    flat = mean_iou(confusion(np.zeros_like(predicted), f.test_label, 11))
    return {
        "the mask itself with the 1-nearest neighbour's digit: mean_iou": f"{found:.4f}",
        "background everywhere: mean_iou": f"{flat:.4f}",
    }


def place_mean(f: Features) -> dict[str, str]:
    """Predicts each masked patch as the mean of this patch over the training pictures."""
    from finetune_jax.models.pretraining import patches_of

    def patches(pixels: np.ndarray) -> np.ndarray:
        cut = np.asarray(patches_of(pixels.reshape(-1, 32, 32, 3) / 127.5 - 1, 16))
        centred = cut - cut.mean(-1, keepdims=True)
        return centred / np.sqrt(cut.var(-1, keepdims=True) + 1e-6)

    error = float(((patches(f.test) - patches(f.train).mean(0)) ** 2).mean())
    return {"mean of each place in training: loss": f"{error:.4f}"}


def cosine_of_pixels(f: Features) -> dict[str, str]:
    """Scores from the cosine similarity of the pixels of the two pictures of a pair."""
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    one, other = np.split(f.test, 2, axis=1)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = (one * other).sum(1) / lengths
    return {
        "cosine of the pixels: spearman": f"{spearmanr(cosine, f.test_label).statistic:.4f}",
        "auroc": f"{roc_auc_score(f.test_label, cosine):.4f}",
    }


def logistic_of_pairs(f: Features) -> dict[str, str]:
    """Logistic regression on |u - v| and u * v of a pair's features u, v (arXiv 1705.02364)."""
    from sklearn.linear_model import LogisticRegression

    def compared(pairs: np.ndarray) -> np.ndarray:
        u, v = pairs[:, 0], pairs[:, 1]
        return np.concatenate([abs(u - v), u * v], axis=1) * u.shape[1] ** 0.5

    model = LogisticRegression(C=10, max_iter=1000)
    score = model.fit(compared(f.train), f.train_label).score(compared(f.test), f.test_label)
    commonest = np.bincount(f.train_label).argmax()
    return {
        "logistic regression (C=10) on abs(u-v), u*v of frozen single sentences: accuracy": (
            f"{score:.4f}"
        ),
        "always the commonest class": f"{(f.test_label == commonest).mean():.4f}",
    }

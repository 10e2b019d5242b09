"""Every metric agrees with scikit-learn or scipy, and has a documented value at the edges."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from finetune_jax.metrics import calibration, classification, ordinal, regression, segmentation

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of scikit-learn in edge cases

# Few values, so that ties are common.
COARSE = st.integers(-4, 4).map(lambda x: x / 2)
FINE = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 6))
property_test = settings(max_examples=60, deadline=None)


@st.composite
def decisions(draw, least=1):
    """(logits f[n, classes], labels i[n]), often with ties, absent classes or one class only."""
    n, classes = draw(st.integers(least, 24)), draw(st.integers(2, 6))
    elements = draw(st.sampled_from([COARSE, FINE, st.just(0.0)]))
    logits = draw(hnp.arrays(np.float64, (n, classes), elements=elements))
    labels = draw(
        hnp.arrays(np.int64, n, elements=st.integers(0, draw(st.integers(0, classes - 1))))
    )
    return logits, labels


@st.composite
def pairs(draw, least=2):
    n = draw(st.integers(least, 24))
    elements = draw(st.sampled_from([COARSE, FINE, st.just(0.1)]))
    return tuple(draw(hnp.arrays(np.float64, n, elements=elements)) for _ in range(2))


def same(ours, theirs):
    assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6, nan_ok=True)


@property_test
@given(decisions())
def test_classification_agrees_with_scikit_learn(case):
    logits, labels = case
    classes, predicted = logits.shape[1], logits.argmax(-1)
    table = classification.confusion(predicted, labels, classes)
    np.testing.assert_array_equal(
        table, sklearn.metrics.confusion_matrix(labels, predicted, labels=range(classes))
    )
    same(
        classification.balanced_accuracy(table),
        sklearn.metrics.balanced_accuracy_score(labels, predicted),
    )
    same(
        classification.macro_f1(table), sklearn.metrics.f1_score(labels, predicted, average="macro")
    )
    same(classification.matthews(table), sklearn.metrics.matthews_corrcoef(labels, predicted))
    precision, recall, f1, n = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=np.nan
    )
    own = classification.per_class(table)
    for name, theirs in (("precision", precision), ("recall", recall), ("n", n)):
        np.testing.assert_allclose(own[name], theirs, atol=1e-6)
    seen = table.sum(0) + table.sum(1) > 0
    np.testing.assert_allclose(own["f1"][seen], f1[seen], atol=1e-6)
    assert np.isnan(own["f1"][~seen]).all()


@property_test
@given(decisions(), st.integers(1, 6))
def test_top_k_agrees_with_scikit_learn_and_at_1_with_argmax(case, k):
    logits, labels = case
    classes = logits.shape[1]
    right = classification.top_k(logits, labels, k)
    if k == 1:
        np.testing.assert_array_equal(right, logits.argmax(-1) == labels)
    if k >= classes:
        assert right.all()
    elif classes > 2:
        # scikit-learn orders equal scores by falling class number: numbered backwards, as we do.
        theirs = sklearn.metrics.top_k_accuracy_score(
            classes - 1 - labels, logits[:, ::-1], k=k, labels=range(classes)
        )
        same(right.mean(), theirs)


@property_test
@given(decisions())
def test_ranking_scores_agree_with_scikit_learn(case):
    logits, labels = case
    scores, positive = logits[:, 0], labels == 0
    if positive.all() or not positive.any():
        assert math.isnan(classification.auroc(scores, positive))
    else:
        same(
            classification.auroc(scores, positive), sklearn.metrics.roc_auc_score(positive, scores)
        )
    if positive.any():
        same(
            classification.average_precision(scores, positive),
            sklearn.metrics.average_precision_score(positive, scores),
        )
    else:
        assert math.isnan(classification.average_precision(scores, positive))


@property_test
@given(pairs(), st.integers(0, 3))
def test_real_valued_scores_agree_with_scipy_and_scikit_learn(pair, constant):
    a, b = pair
    if constant == 1:
        b = np.full_like(b, b[0])
    same(regression.rmse(a, b), sklearn.metrics.root_mean_squared_error(b, a))
    same(regression.mae(a, b), sklearn.metrics.mean_absolute_error(b, a))
    if np.ptp(a) > 0 and np.ptp(b) > 0:
        same(regression.pearson(a, b), scipy.stats.pearsonr(a, b).statistic)
        same(regression.spearman(a, b), scipy.stats.spearmanr(a, b).statistic)
    else:
        assert math.isnan(regression.pearson(a, b))
        assert math.isnan(regression.spearman(a, b))
    if np.ptp(b) > 0:
        same(regression.r2(a, b), sklearn.metrics.r2_score(b, a))
    else:
        assert math.isnan(regression.r2(a, b))


@property_test
@given(decisions())
def test_kappa_and_mean_iou_agree_with_scikit_learn(case):
    logits, labels = case
    predicted = logits.argmax(-1)
    table = classification.confusion(predicted, labels, logits.shape[1])
    theirs = sklearn.metrics.cohen_kappa_score(
        labels, predicted, weights="quadratic", labels=range(logits.shape[1])
    )
    same(ordinal.weighted_kappa(table), theirs)
    same(
        segmentation.mean_iou(table),
        sklearn.metrics.jaccard_score(labels, predicted, average="macro"),
    )


@property_test
@given(decisions())
def test_likelihood_and_calibration_agree_with_direct_computations(case):
    logits, labels = case
    classes = range(logits.shape[1])
    probabilities = scipy.special.softmax(logits, -1)
    own = scipy.special.log_softmax(logits, -1)[np.arange(len(labels)), labels]
    same(calibration.nll(logits, labels), -own.mean())
    ones = np.eye(len(classes))[labels]
    same(calibration.brier(logits, labels), ((probabilities - ones) ** 2).sum(-1).mean())
    # Guo et al.'s definition, bin by bin.
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    same(calibration.ece(logits, labels), total)


@property_test
@given(decisions(), st.randoms(use_true_random=False))
def test_risk_at_full_coverage_is_the_error_and_the_order_does_not_matter(case, random):
    logits, labels = case
    coverage, risk = calibration.selective(logits, labels)
    assert coverage[-1] == 1
    # Ties are those of the probabilities: logits that differ by less than rounding are equal there.
    chosen = np.exp(calibration.log_softmax(logits)).argmax(-1)
    same(risk[-1], (chosen != labels).mean())
    order = np.array(random.sample(range(len(labels)), len(labels)))
    np.testing.assert_allclose(calibration.selective(logits[order], labels[order])[1], risk)
    same(calibration.area_under_risk(logits, labels), risk.mean())


def test_risk_of_known_examples():
    logits = np.array([[3.0, 0], [2, 0], [1, 0], [0.5, 0]])
    _, risk = calibration.selective(logits, np.array([0, 1, 0, 1]))
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])


def test_temperature_undoes_a_known_one_and_never_raises_the_loss():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 5)) * 2
    chances = scipy.special.softmax(logits, -1)
    labels = (generator.random((len(logits), 1)) > chances.cumsum(-1)).sum(-1)
    found = calibration.temperature(3 * logits, labels)
    assert found == pytest.approx(3, rel=0.05)
    assert calibration.nll(3 * logits / found, labels) < calibration.nll(3 * logits, labels)
    assert calibration.ece(3 * logits / found, labels) < 0.02 < calibration.ece(3 * logits, labels)
    # No temperature within 1 % of the result is better.
    for near in (0.99, 1.01):
        best = calibration.nll(3 * logits / found, labels)
        assert calibration.nll(3 * logits / (found * near), labels) > best


def test_the_temperature_of_perfect_predictions_leaves_no_loss():
    found = calibration.temperature(np.eye(3), np.arange(3))
    assert 0.01 <= found < 0.1
    assert calibration.nll(np.eye(3) / found, np.arange(3)) < 1e-9


@pytest.mark.parametrize("classes", [2, 5])
def test_without_examples_every_score_is_nan(classes):
    logits, labels, none = np.zeros((0, classes)), np.zeros(0, int), np.zeros(0)
    table = classification.confusion(labels, labels, classes)
    assert classification.top_k(logits, labels, 1).shape == (0,)
    assert table.shape == (classes, classes)
    coverage, risk = calibration.selective(logits, labels)
    assert len(coverage) == len(risk) == 0
    for value in (
        classification.balanced_accuracy(table),
        classification.macro_f1(table),
        classification.matthews(table),
        classification.auroc(none, labels),
        classification.average_precision(none, labels),
        calibration.nll(logits, labels),
        calibration.brier(logits, labels),
        calibration.ece(logits, labels),
        calibration.temperature(logits, labels),
        calibration.area_under_risk(logits, labels),
        ordinal.weighted_kappa(table),
        segmentation.mean_iou(table),
        *(getattr(regression, s)(none, none) for s in ("rmse", "mae", "pearson", "spearman", "r2")),
    ):
        assert math.isnan(value)


def test_one_example_has_no_correlation_and_no_explained_variance():
    one = np.array([2.0])
    assert math.isnan(regression.pearson(one, one))
    assert math.isnan(regression.spearman(one, one))
    assert math.isnan(regression.r2(one, one))


def test_calibration_bins_are_open_below_and_closed_above():
    logits = np.log(np.array([[0.6, 0.4], [0.6 + 1e-9, 0.4 - 1e-9]]))
    counts, _, _ = calibration.reliability(logits, np.array([0, 0]), bins=5)
    assert counts.tolist() == [0, 0, 1, 1, 0]

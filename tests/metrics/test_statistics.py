"""Intervals and paired tests against independent computations."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_jax.metrics.intervals import bootstrap, bootstrap_pairs, wilson
from finetune_jax.metrics.paired import bootstrap_difference, holm, mcnemar

property_test = settings(max_examples=60, deadline=None)


@property_test
@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_agrees_with_scipy(n, share):
    successes = round(share * n)
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(successes, n), (theirs.low, theirs.high), atol=1e-6)


@property_test
@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.99]))
def test_wilson_at_another_level(n, share, level):
    successes = round(share * n)
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    z = scipy.stats.norm.ppf((1 + level) / 2)
    np.testing.assert_allclose(wilson(successes, n, z), (theirs.low, theirs.high), atol=1e-9)


def test_wilson_without_trials_is_unknown():
    assert all(map(math.isnan, wilson(0, 0)))


def test_bootstrap_agrees_with_scipy_up_to_the_draws():
    values = np.random.default_rng(0).normal(size=200)
    ours = bootstrap(lambda i: values[i].mean(), len(values), resamples=4000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(2), 0
    for _ in range(200):
        values = generator.normal(size=60)
        low, high = bootstrap(lambda i, v=values: v[i].mean(), 60, resamples=200)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_bootstrap_is_the_same_every_time_and_nan_where_nothing_is_defined():
    values = np.arange(10.0)
    assert bootstrap(lambda i: values[i].mean(), 10) == bootstrap(lambda i: values[i].mean(), 10)
    assert all(map(math.isnan, bootstrap(lambda i: math.nan, 5)))
    assert all(map(math.isnan, bootstrap(lambda i: 1.0, 0)))


def test_levels_and_seeds_of_the_bootstrap():
    values = np.random.default_rng(0).normal(size=50)

    def mean(rows):
        return values[rows].mean()

    draws = []
    bootstrap(lambda rows: draws.append(rows) or 0.0, 50, resamples=30, seed=4)
    means = [values[rows].mean() for rows in draws]
    assert len(draws) == 30 and all(len(rows) == 50 for rows in draws)
    found = bootstrap(mean, 50, resamples=30, level=0.8, seed=4)
    np.testing.assert_allclose(found, np.quantile(means, [0.1, 0.9]))
    assert bootstrap(mean, 50, seed=0) != bootstrap(mean, 50, seed=1)
    low, high, _ = bootstrap_difference(mean, 50, resamples=30, level=0.8, seed=4)
    np.testing.assert_allclose((low, high), np.quantile(means, [0.1, 0.9]))


def test_a_bootstrap_leaves_out_resamples_without_a_score():
    values = np.arange(8.0)

    def mean(rows):
        return math.nan if 0 in rows else values[rows].mean()

    low, high = bootstrap(mean, 8, resamples=500)
    assert 1 < low < high < 7
    assert bootstrap_difference(mean, 8, resamples=500)[2] == 1 / 500


def test_pairs_are_resampled_together():
    predicted = np.random.default_rng(1).normal(size=40)
    low, high = bootstrap_pairs(lambda a, b: float(np.abs(a - b).max()), predicted, predicted)
    assert low == high == 0


@property_test
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 10))
def test_mcnemar_is_the_sum_of_binomial_chances(first, second, both):
    ours = np.array([True] * first + [False] * second + [True] * both, bool)
    theirs = np.array([False] * first + [True] * second + [True] * both, bool)
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
    assert mcnemar(ours, theirs) == pytest.approx(min(1.0, 2 * tail), abs=1e-9)
    assert mcnemar(ours, theirs) == pytest.approx(mcnemar(theirs, ours), abs=1e-12)


def test_a_paired_difference_agrees_with_all_resamples_there_are():
    gaps = np.array([1.0, 0.0, 2.0, -1.0])
    every = np.array([gaps[list(i)].mean() for i in itertools.product(range(4), repeat=4)])
    low, high, p = bootstrap_difference(lambda i: gaps[i].mean(), 4, resamples=20_000)
    np.testing.assert_allclose((low, high), np.quantile(every, [0.025, 0.975]), atol=0.1)
    exact = 2 * min((every <= 0).mean(), (every >= 0).mean())
    assert p == pytest.approx(exact, abs=0.02)


def test_a_paired_difference_at_the_edges():
    assert bootstrap_difference(lambda i: 0.0, 5, resamples=50) == (0, 0, 1)
    assert bootstrap_difference(lambda i: 1.0, 5, resamples=50) == (1, 1, 1 / 50)
    assert all(map(math.isnan, bootstrap_difference(lambda i: math.nan, 5, resamples=50)))
    assert all(map(math.isnan, bootstrap_difference(lambda i: 1.0, 0)))


@property_test
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
        for rank, index in enumerate(order):
            if (len(p_values) - rank) * p_values[index] > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_holm_of_a_known_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []

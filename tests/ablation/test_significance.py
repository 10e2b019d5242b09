"""Intervals and tests against scipy, adjustments against their definition, ties and edges."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import classified, cost, make_outcome, make_row, regressed

from finetune_jax.ablation.report.statistics import compare
from finetune_jax.metrics.crossed import over_seeds, p_value, quantile
from finetune_jax.metrics.paired import bootstrap_difference, holm, mcnemar

quick = settings(max_examples=40, deadline=None)
scores = st.floats(-1, 1).map(lambda x: round(x, 3))
samples = st.lists(scores, min_size=3, max_size=8).filter(lambda v: len(set(v)) > 1)


@quick
@given(samples, st.sampled_from([0.8, 0.95]))
def test_the_t_interval_is_that_of_scipy(values, level):
    spread = over_seeds(values)
    half = quantile(spread, level) * spread.error
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    expected = scipy.stats.t.interval(level, len(values) - 1, np.mean(values), error)
    mean = np.mean(values)
    assert (mean - half, mean + half) == pytest.approx(expected, abs=1e-9)
    assert (spread.seeds, spread.examples) == (True, False)


def test_the_default_level_is_95_percent():
    spread = over_seeds([1.0, 2.0, 4.0])
    assert quantile(spread) == quantile(spread, 0.95) == pytest.approx(4.302652729911)


@quick
@given(samples)
def test_the_t_test_is_that_of_scipy(values):
    expected = scipy.stats.ttest_1samp(values, 0).pvalue
    assert p_value(float(np.mean(values)), over_seeds(values)) == pytest.approx(expected, abs=1e-9)


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_step_down_of_its_definition(p_values):
    # The adjusted value of a hypothesis is the largest (m - k) p over all that come before it.
    m = len(p_values)
    ordered = sorted(range(m), key=lambda i: p_values[i])
    for rank, index in enumerate(ordered):
        expected = max((m - k) * p_values[ordered[k]] for k in range(rank + 1))
        assert holm(p_values)[index] == pytest.approx(min(1.0, expected))


@quick
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_sign_test_of_examples_that_differ(pairs):
    ours, theirs = (np.array(column) for column in zip(*pairs, strict=True))
    better = sum(a and not b for a, b in pairs)
    differ = sum(a != b for a, b in pairs)
    expected = scipy.stats.binomtest(better, differ, 0.5).pvalue if differ else 1.0
    assert mcnemar(ours, theirs) == pytest.approx(expected)


def test_the_bootstrap_interval_and_p_value_are_those_of_the_resamples():
    values = np.random.default_rng(0).normal(0.15, 1.0, 60)
    drawn = []

    def statistic(rows):
        assert rows.shape == (60,)
        drawn.append(float(values[rows].mean()))
        return drawn[-1]

    low, high, p_value = bootstrap_difference(statistic, 60, resamples=400)
    assert len(drawn) == 400
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    expected = 2 * min(np.mean(np.array(drawn) <= 0), np.mean(np.array(drawn) >= 0))
    assert 0.02 < expected < 0.9 and p_value == pytest.approx(expected)
    # The standard error of the mean is the spread of the resamples.
    assert np.std(drawn) == pytest.approx(values.std() / math.sqrt(60), rel=0.15)


def test_a_bootstrap_p_value_is_never_zero_and_never_above_one():
    assert bootstrap_difference(lambda _: 1.0, 5, resamples=50)[2] == 1 / 50
    assert bootstrap_difference(lambda _: 0.0, 5, resamples=50)[2] == 1.0


def _rows(folder, by_name, **changes):
    return [make_row(folder, name, runs, **changes) for name, runs in by_name.items()]


def test_the_difference_is_ours_minus_the_reference_and_paired_by_seed(tmp_path):
    n = 50
    reference = {0: 10, 1: 30, 2: 40}
    gains = {0: 1, 1: 3, 2: 5}
    runs = {
        "reference": {s: classified(np.arange(n) < k) for s, k in reference.items()},
        # The seeds are in another order, on which differences must not depend.
        "better": {s: classified(np.arange(n) < reference[s] + gains[s]) for s in (2, 0, 1)},
    }
    (comparison,) = compare(make_outcome(_rows(tmp_path, runs)))
    row = comparison.rows[1]
    gaps = [gain / n for gain in gains.values()]
    assert row.difference.value == pytest.approx(np.mean(gaps)) and row.difference.seeds == 3
    # No example gains with two seeds, so that the examples add no variance to that of the seeds.
    expected = scipy.stats.ttest_rel([reference[s] + gains[s] for s in reference],
                                     list(reference.values())).pvalue  # fmt: skip
    assert row.p == pytest.approx(expected)
    # An unpaired test would see the spread of the seeds, which is much larger.
    assert row.p < 0.2 < scipy.stats.ttest_ind([11, 33, 45], [10, 30, 40]).pvalue


def test_p_values_are_adjusted_over_the_rows_with_a_difference(tmp_path):
    generator = np.random.default_rng(3)
    base = {s: generator.random(60) < 0.5 for s in range(3)}
    runs = {"base": {s: classified(right) for s, right in base.items()}}
    for number, name in enumerate("abc"):
        runs[name] = {
            s: classified(right | (generator.random(60) < 0.05 * (number + 1)))
            for s, right in base.items()
        }
    runs["lost"] = {}
    (comparison,) = compare(make_outcome(_rows(tmp_path, runs)))
    rows = {x.row.spec.label: x for x in comparison.rows}
    p_values = [rows[name].p for name in "abc"]
    assert not any(map(math.isnan, p_values)) and max(p_values) < 1
    assert [rows[name].p_holm for name in "abc"] == pytest.approx(holm(p_values))
    assert rows["b"].p_holm > rows["b"].p
    for name in ("base", "lost"):
        row = rows[name]
        assert row.difference is None
        assert math.isnan(row.p) and math.isnan(row.p_holm) and row.test == ""


def test_equal_costs_can_dominate_and_any_higher_cost_cannot(tmp_path):
    n = 200
    right = {"good": 160, "poor": 100}
    runs = {k: {0: classified(np.arange(n) < v)} for k, v in right.items()}
    for good, poor, expected in (
        (cost(10, 10), cost(10, 10), ("good",)),
        (cost(9, 10), cost(10, 10), ("good",)),
        (cost(11, 10), cost(10, 10), ()),
        (cost(10, 11), cost(10, 10), ()),
        (cost(1, 1), None, ()),
    ):
        rows = [
            make_row(tmp_path, "good", runs["good"], cost=good),
            make_row(tmp_path, "poor", runs["poor"], cost=poor),
        ]
        (comparison,) = compare(make_outcome(rows, seeds=(0,)))
        assert comparison.rows[1].dominated_by == expected
        assert comparison.rows[0].dominated_by == ()


def test_rows_that_are_equal_in_everything_share_the_front(tmp_path):
    runs = {name: {0: classified(np.arange(40) < 20)} for name in "ab"}
    (comparison,) = compare(make_outcome(_rows(tmp_path, runs), seeds=(0,)))
    assert [row.front for row in comparison.rows] == [("trainable", "step_flops")] * 2
    assert [row.p for row in comparison.rows[1:]] == [1.0]


@pytest.mark.slow
def test_a_row_dominates_only_in_the_direction_of_the_metric(tmp_path):
    error = np.linspace(-1, 1, 80)
    runs = {"near": {0: regressed(0.1 * error)}, "far": {0: regressed(error)}}
    for better, dominated in (("min", "far"), ("max", "near")):
        outcome = make_outcome(_rows(tmp_path, runs), "rmse", better=better, seeds=(0,))
        (comparison,) = compare(outcome)
        found = {x.row.spec.label: x.dominated_by for x in comparison.rows}
        other = {"far": "near", "near": "far"}[dominated]
        assert found == {dominated: (other,), other: ()}

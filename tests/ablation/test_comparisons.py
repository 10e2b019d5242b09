"""Intervals, paired tests, Pareto fronts and dominated rows, against computations by hand."""

import dataclasses
import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import classified, cost, make_outcome, make_row, ordered, regressed, rights

from finetune_jax.ablation.report.statistics import compare, estimate, pareto
from finetune_jax.errors import UserError
from finetune_jax.metrics.crossed import over_seeds, p_value
from finetune_jax.metrics.names import SHARE, UNBOUNDED

property_test = settings(max_examples=60, deadline=None)
spread_out = st.floats(-1, 1).map(lambda x: round(x, 3))


def only(outcome):
    (comparison,) = compare(outcome)
    return comparison, {x.row.spec.label: x for x in comparison.rows}


def by_seed(values):
    return {seed: {"x": value} for seed, value in enumerate(values)}


def binomial(first, second):
    """McNemar's exact two-sided p-value."""
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
    return min(1.0, 2 * tail)


@property_test
@given(st.lists(spread_out, min_size=3, max_size=3).filter(lambda v: len(set(v)) > 1))
def test_with_three_seeds_the_t_distribution_has_a_closed_form(values):
    # Two degrees of freedom: P(|T| > t) = 1 - t / sqrt(t^2 + 2).
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(3)
    found = estimate(by_seed(values), "x", UNBOUNDED)
    assert found.value == pytest.approx(mean, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(
        (mean - 4.302652729911 * error, mean + 4.302652729911 * error), abs=1e-9
    )
    assert found.covers == "seeds"
    t = abs(mean) / error
    assert p_value(mean, over_seeds(values)) == pytest.approx(
        1 - t / math.sqrt(t * t + 2), abs=1e-9
    )


def test_the_interval_with_five_seeds():
    values = [0.90, 0.92, 0.91, 0.95, 0.93]
    half = 2.7764451051978 * statistics.stdev(values) / math.sqrt(5)
    found = estimate(by_seed(values), "x", UNBOUNDED)
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.922, 0.922 - half, 0.922 + half), abs=1e-12
    )


@pytest.mark.parametrize("values", [[], [0.5], [0.3, 0.8]])
def test_below_three_seeds_there_is_no_interval_over_seeds_and_no_p_value(values):
    found = estimate(by_seed(values), "x", SHARE)
    assert found.seeds == len(values) and found.covers == ""
    assert math.isnan(found.low) and math.isnan(found.high)
    if values:
        assert found.value == pytest.approx(np.mean(values))
        assert math.isnan(p_value(found.value, over_seeds(values)))


@property_test
@given(st.lists(st.floats(0, 1), min_size=3, max_size=6))
def test_an_interval_of_a_share_stays_between_0_and_1_around_the_share(values):
    found = estimate(by_seed(values), "x", SHARE)
    assert 0 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 1


def test_differences_without_spread():
    assert p_value(0.0, over_seeds([0.0, 0.0, 0.0])) == 1
    # The difference is the same with every seed, up to rounding.
    assert math.isnan(p_value(0.01, over_seeds([0.93 - 0.92, 0.83 - 0.82, 0.53 - 0.52])))


def test_one_seed_has_the_interval_of_its_task_and_undefined_scores_are_left_out():
    own = {"accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.94}
    found = estimate({3: own}, "accuracy", SHARE)
    assert dataclasses.astuple(found) == (0.9, 0.85, 0.94, 1, "examples")
    found = estimate({0: own, 1: {"accuracy": None}, 2: {"accuracy": math.nan}}, "accuracy", SHARE)
    assert (found.value, found.low, found.seeds) == (0.9, 0.85, 1)
    assert math.isnan(estimate({}, "accuracy", SHARE).value)
    assert math.isnan(estimate({0: {"accuracy": 0.5}}, "accuracy", SHARE).low)


def test_differences_are_paired_over_common_seeds(tmp_path):
    n = 100
    share = {0: 0.90, 1: 0.80, 2: 0.85}
    runs = {s: classified(np.arange(n) < round(n * x)) for s, x in share.items()}
    better = {s: classified(np.arange(n) < round(n * (x + 0.03 + 0.01 * s)))
              for s, x in share.items() if s != 0}  # fmt: skip
    rows = [make_row(tmp_path, "base", runs), make_row(tmp_path, "other", better)]
    _, found = only(make_outcome(rows))
    assert found["base"].difference is None
    difference = found["other"].difference
    assert difference.seeds == 2 and difference.covers == "examples"
    assert difference.value == pytest.approx(0.045)
    # 4 and 5 other examples gain with the two seeds, none of them with both.
    gaps = np.zeros((2, n))
    gaps[0, 80:80], gaps[0, 80:84], gaps[1, 85:90] = 0, 1, 1
    error = math.sqrt(gaps.mean(0).var(ddof=1) / n)
    assert difference.high - difference.low == pytest.approx(2 * 1.984217 * error, rel=1e-5)
    # The seeds differ by 0.01 and share no variance, which leaves the t-test with one degree of
    # freedom: P(|T| > t) = 1 - 2 atan(t) / pi.
    assert found["other"].test == "random-effects test over seeds and examples"
    assert found["other"].p == pytest.approx(1 - 2 * math.atan(0.045 / 0.005) / math.pi)


def crossed_p(gaps):
    """The p-value of differences i[seeds, n] by the mean squares of a two-way table."""
    seeds, n = gaps.shape
    by_seed, by_example, mean = gaps.mean(1), gaps.mean(0), gaps.mean()
    rest = gaps - by_seed[:, None] - by_example + mean
    of_seeds = n * ((by_seed - mean) ** 2).sum() / (seeds - 1)
    of_examples = seeds * ((by_example - mean) ** 2).sum() / (n - 1)
    of_rest = (rest**2).sum() / (seeds - 1) / (n - 1)
    variance = (of_seeds + max(0.0, of_examples - of_rest)) / (seeds * n)
    freedom = min(n - 1, (seeds - 1) / (of_seeds / seeds / n / variance))
    return 2 * scipy.stats.t.sf(abs(mean) / math.sqrt(variance), freedom)


def runs_of(chances, generator, n, seeds=3):
    """Runs of a classifier whose chance to be right is that of each example, f[n]."""
    return {s: generator.random(n) < chances for s in range(seeds)}


@pytest.mark.parametrize("number", range(3))
def test_the_test_over_seeds_and_examples_is_that_of_the_two_way_table(tmp_path, number):
    generator = np.random.default_rng(number)
    n = (40, 150, 400)[number]
    ours, theirs = (runs_of(generator.beta(2, 1, n), generator, n) for _ in range(2))
    rows = [make_row(tmp_path, name, {s: classified(x) for s, x in runs.items()})
            for name, runs in (("theirs", theirs), ("ours", ours))]  # fmt: skip
    _, found = only(make_outcome(rows))
    gaps = np.stack([ours[s].astype(int) - theirs[s] for s in range(3)])
    assert found["ours"].difference.covers == found["ours"].score.covers == "seeds and examples"
    assert found["ours"].p == pytest.approx(crossed_p(gaps), rel=1e-9)


def test_seeds_that_disagree_are_not_taken_for_more_examples(tmp_path):
    """The predictions of three seeds pooled gave p = 0.01 for a difference that one seed makes."""
    n = 150
    base = {s: classified(np.arange(n) < 100) for s in range(3)}
    gains = {0: 13, 1: 0, 2: 0}
    other = {s: classified(np.arange(n) < 100 + gains[s]) for s in range(3)}
    rows = [make_row(tmp_path, "base", base, cost=cost(20, 20)),
            make_row(tmp_path, "other", other, cost=cost(10, 10))]  # fmt: skip
    _, found = only(make_outcome(rows))
    assert binomial(13, 0) < 0.001
    assert found["other"].p > 0.3 and found["base"].dominated_by == ()
    assert found["other"].difference.low < 0 < found["other"].difference.high


def test_seeds_that_all_agree_are_one_run(tmp_path):
    n = 150
    rows = [make_row(tmp_path, name, {s: classified(np.arange(n) < k) for s in range(3)})
            for name, k in (("base", 100), ("other", 109))]  # fmt: skip
    comparison, found = only(make_outcome(rows))
    assert comparison.tests == ("McNemar's test over examples",)
    assert found["other"].p == pytest.approx(binomial(9, 0))


def test_two_seeds_that_disagree_widely_have_no_interval_beyond_the_shares(tmp_path):
    """Student's interval over two seeds was [-0.84, 1.95] for such shares."""
    n = 100
    runs = {s: classified(np.arange(n) < k) for s, k in enumerate((45, 67))}
    rows = [make_row(tmp_path, "base", runs), make_row(tmp_path, "same", runs)]
    _, found = only(make_outcome(rows, seeds=(0, 1)))
    score = found["base"].score
    assert score.covers == "examples" and 0.4 < score.low < 0.56 < score.high < 0.7


def test_holm_is_over_the_rows_of_the_table(tmp_path):
    n, better = 100, {"a": 6, "b": 7, "c": 9}
    rows = [make_row(tmp_path, "base", {0: classified(np.arange(n) < 50)})]
    rows += [make_row(tmp_path, k, {0: classified(np.arange(n) < 50 + v)})
             for k, v in better.items()]  # fmt: skip
    _, found = only(make_outcome(rows, seeds=(0,)))
    p = {k: binomial(v, 0) for k, v in better.items()}
    assert p["a"] < 0.05
    expected = {"c": 3 * p["c"], "b": max(3 * p["c"], 2 * p["b"])}
    expected["a"] = max(expected["b"], p["a"])
    for name, adjusted in expected.items():
        assert found[name].p_holm == pytest.approx(adjusted)


@pytest.mark.slow
def test_a_bootstrap_takes_the_repeats_of_an_example_together(tmp_path):
    generator = np.random.default_rng(0)
    base, other = generator.normal(0, 1.0, 80), generator.normal(0, 0.8, 80)
    found = {}
    for seeds in (1, 3):
        rows = [
            make_row(tmp_path, "base", dict.fromkeys(range(seeds), regressed(base))),
            make_row(tmp_path, "other", dict.fromkeys(range(seeds), regressed(other))),
        ]
        comparison, by_label = only(make_outcome(rows, "rmse", better="min"))
        assert comparison.tests == ("paired bootstrap over examples",)
        found[seeds] = by_label["other"].p
    # Three equal runs have no more information about the examples than one run.
    assert found[3] == found[1]
    draws = np.random.default_rng(1).integers(0, 80, (20_000, 80))
    gaps = np.sqrt((other[draws] ** 2).mean(1)) - np.sqrt((base[draws] ** 2).mean(1))
    expected = 2 * min((gaps <= 0).mean(), (gaps >= 0).mean())
    assert 0.01 < expected < 0.5
    assert found[1] == pytest.approx(expected, abs=4 * math.sqrt(expected / 1000))


@pytest.mark.slow
def test_a_bootstrap_is_paired_in_examples_and_a_mean_over_seeds(tmp_path):
    generator = np.random.default_rng(0)
    errors = [generator.normal(0, 1.0, 80) for _ in range(2)]
    base = {s: regressed(e) for s, e in enumerate(errors)}
    rows = [
        make_row(tmp_path, "base", base),
        # Every example is a little better, which is significant if the same examples are drawn for
        # both rows.
        make_row(tmp_path, "nearer", {s: regressed(0.97 * e) for s, e in enumerate(errors)}),
        # The row is better with one seed, and worse by the same amount with the other seed.
        make_row(tmp_path, "either", {0: regressed(0.5 * errors[0]), 1: regressed(
            1.5 * errors[1])}),
    ]  # fmt: skip
    _, found = only(make_outcome(rows, "rmse", better="min", seeds=(0, 1)))
    assert found["nearer"].p < 1 / 1000
    draws = np.random.default_rng(1).integers(0, 80, (20_000, 80))
    first, second = (np.sqrt((e[draws] ** 2).mean(1)) for e in errors)
    gaps = (0.5 * second - 0.5 * first) / 2
    expected = 2 * min((gaps <= 0).mean(), (gaps >= 0).mean())
    assert expected > 0.2
    assert found["either"].p > expected


def test_a_metric_that_is_no_share_of_right_answers_is_resampled(tmp_path):
    # One row has more right predictions, but its errors are large, so kappa is lower.
    label = np.arange(200) % 5
    near = np.where(np.arange(200) % 10 < 5, label, np.clip(label + 1, 0, 4))
    far = np.where(np.arange(200) % 10 < 8, label, 4 - label)
    rows = [
        make_row(tmp_path, "near", {0: ordered(near, label)}, cost=cost(10, 10)),
        make_row(tmp_path, "far", {0: ordered(far, label)}, cost=cost(20, 20)),
    ]
    comparison, found = only(make_outcome(rows, "kappa", seeds=(0,)))
    assert (far == label).mean() > (near == label).mean()
    assert found["near"].score.value > found["far"].score.value
    assert comparison.tests == ("paired bootstrap over examples",)
    assert found["far"].dominated_by == ("near",)


def test_a_score_without_an_interval_over_examples_has_no_test_over_them(tmp_path):
    rows = [make_row(tmp_path, name, rights(0.5, start=i)) for i, name in enumerate("ab")]
    comparison, found = only(make_outcome(rows, "macro_f1"))
    assert comparison.tests == ("paired t-test over seeds",)
    assert found["b"].difference.covers == "seeds" and not math.isnan(found["b"].p)
    assert found["a"].dominated_by == found["b"].dominated_by == ()


points = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0.1, 0.2, 0.3, math.nan])),
    min_size=1,
    max_size=7,
)


@property_test
@given(points, st.sampled_from([1, -1]))
def test_the_front_is_what_no_row_beats_in_cost_and_score(tmp_path_factory, chosen, sign):
    template = make_row(tmp_path_factory.mktemp("front"), "x", {})
    rows = [
        (
            dataclasses.replace(
                template,
                spec=dataclasses.replace(template.spec, name=str(i)),
                cost=cost(c, 0.0),
            ),
            score,
        )
        for i, (c, score) in enumerate(chosen)
    ]
    front = pareto(rows, "trainable", sign)
    for i, (c, score) in enumerate(chosen):
        beaten = math.isnan(score)
        for d, other in chosen:
            as_good = sign * other >= sign * score and d <= c
            beaten |= as_good and (other != score or d != c)
        assert (str(i) in front) == (not beaten)
    if not all(math.isnan(score) for _, score in chosen):
        best = max((sign * s for _, s in chosen if not math.isnan(s)))
        assert any(sign * s == best and str(i) in front for i, (_, s) in enumerate(chosen))


def test_dominated_is_what_a_row_that_takes_no_more_is_surely_better_than(tmp_path):
    n = 200
    right = {"good": 150, "poor": 100, "near": 147, "thrifty": 90, "rich": 190}
    runs = {k: {0: classified(np.arange(n) < v)} for k, v in right.items()}
    costs = {"good": cost(10, 10), "poor": cost(10, 10), "near": cost(20, 20),
             "thrifty": cost(10, 5), "rich": cost(11, 9)}  # fmt: skip
    rows = [make_row(tmp_path, k, runs[k], cost=costs[k]) for k in runs]
    comparison, found = only(make_outcome(rows, seeds=(0,)))
    assert found["poor"].dominated_by == ("good",)
    # A difference of 3 examples is not significant. "rich" is significantly better, and costs no
    # more than "near".
    assert binomial(3, 0) > 0.05
    assert found["near"].dominated_by == ("rich",)
    # No other row has as few FLOPs as "thrifty", and "rich" trains more scalars than "good".
    assert found["thrifty"].dominated_by == found["good"].dominated_by == ()
    assert found["rich"].front == ("trainable", "step_flops")
    assert found["good"].front == ("trainable",) and found["thrifty"].front == ("step_flops",)
    assert found["poor"].front == found["near"].front == ()


def test_domination_is_adjusted_over_all_pairs(tmp_path):
    n, sizes = 100, {"a": 50, "b": 57, "c": 50, "d": 50, "e": 50}
    rows = [make_row(tmp_path, k, {0: classified(np.arange(n) < v)}) for k, v in sizes.items()]
    _, two = only(make_outcome(rows[:2], seeds=(0,)))
    _, five = only(make_outcome(rows, seeds=(0,)))
    assert binomial(7, 0) < 0.05 < 10 * binomial(7, 0)
    assert two["a"].dominated_by == ("b",)
    # Ten pairs, four of which have this p-value, the least of all.
    assert five["a"].dominated_by == ()


@pytest.mark.slow
def test_less_can_be_better(tmp_path):
    small, large = np.full(60, 0.1), np.full(60, 2.0)
    small[::2] *= -1
    large[::2] *= -1
    rows = [make_row(tmp_path, "large", {0: regressed(large)}),
            make_row(tmp_path, "small", {0: regressed(small)})]  # fmt: skip
    _, found = only(make_outcome(rows, "rmse", better="min", seeds=(0,)))
    assert found["large"].dominated_by == ("small",) and found["small"].front
    assert found["large"].front == () and found["small"].dominated_by == ()
    assert found["small"].difference.value == pytest.approx(-1.9, abs=1e-5)


def test_rows_with_other_budgets_are_refused(tmp_path):
    rows = [make_row(tmp_path, "a", rights(0.5)), make_row(tmp_path, "b", rights(0.5), budget=8)]
    with pytest.raises(UserError, match=r"one tuning budget for all, found 'a': 2, 'b': 8"):
        compare(make_outcome(rows))
    apart = [rows[0], dataclasses.replace(rows[1], spec=dataclasses.replace(
        rows[1].spec, table="elsewhere"))]  # fmt: skip
    assert [c.budget for c in compare(make_outcome(apart))] == [2, 8]


def test_predictions_of_other_examples_are_refused(tmp_path):
    rows = [make_row(tmp_path, "a", rights(0.5)),
            make_row(tmp_path, "b", rights(0.5), first_example=7)]  # fmt: skip
    with pytest.raises(UserError, match="'a' and 'b', seed 0: expected predictions of the same"):
        compare(make_outcome(rows))


def test_a_failed_row_stays_and_is_compared_with_nothing(tmp_path):
    rows = [make_row(tmp_path, "lost", {}, failed=True),
            make_row(tmp_path, "a", rights(0.5)), make_row(tmp_path, "b", rights(0.9))]  # fmt: skip
    comparison, found = only(make_outcome(rows))
    assert comparison.reference == "lost" and list(found) == ["lost", "a", "b"]
    assert all(x.difference is None for x in found.values())
    assert math.isnan(found["lost"].score.value) and found["lost"].front == ()
    comparison, found = only(make_outcome(rows, reference="a"))
    assert found["b"].difference.value > 0.2 and found["lost"].difference is None


def test_every_table_has_its_own_reference_and_its_own_family(tmp_path):
    rows = [
        make_row(tmp_path, label, rights(0.5 + 0.1 * i, start=10 * i), table=table)
        for table, (i, label) in itertools.product(("x", "y"), enumerate(("a", "b", "c")))
    ]
    first, second = compare(make_outcome(rows, reference="b"))
    assert first.reference == second.reference == "b" and (first.name, second.name) == ("x", "y")
    for one, two in zip(first.rows, second.rows, strict=True):
        assert one.difference == two.difference and one.front == two.front

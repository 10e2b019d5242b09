"""Searches propose points with equal budgets, and continue after an interruption."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_jax.ablation.axes import over, product
from finetune_jax.ablation.search import parse_search
from finetune_jax.ablation.search.base import Trial, best_trial, budget, edges
from finetune_jax.ablation.study import RowSpec
from finetune_jax.errors import UserError

RATES = (0.01, 0.1, 1.0)


def row_of(name, points):
    return RowSpec(name, name, "", {}, tuple(points))


def drive(search, rows, value):
    """Calls the search until it proposes nothing; returns the trials by row."""
    tried = {x.name: [] for x in rows}
    while True:
        proposals = {x.name: search.propose(x, tried) for x in rows}
        if not any(proposals.values()):
            return tried
        for name, proposed in proposals.items():
            tried[name] += [Trial(p, s, value(name, p, s)) for p, s in proposed]


def test_a_grid_tries_each_point_once():
    rows = [row_of("a", product(over("lr", RATES), over("wd", (0.0, 0.1))))]
    tried = drive(parse_search("grid(extend=0)"), rows, lambda n, p, s: p["lr"])
    assert [t.point for t in tried["a"]] == list(rows[0].points)
    assert all(t.share == 1.0 for t in tried["a"])


def test_a_grid_with_its_best_inside_is_not_extended():
    rows = [row_of("a", over("lr", RATES))]
    tried = drive(parse_search("grid(extend=3)"), rows, lambda n, p, s: -abs(p["lr"] - 0.1))
    assert len(tried["a"]) == 3


def test_an_end_is_extended_for_every_row_so_that_budgets_stay_equal():
    rows = [row_of("a", over("lr", RATES)), row_of("b", over("lr", RATES))]
    # Row a is best beyond the end of the grid, row b inside of the grid.
    aims = {"a": 10.0, "b": 0.1}
    tried = drive(
        parse_search("grid(extend=2)"), rows, lambda n, p, s: -abs(math.log(p["lr"] / aims[n]))
    )
    assert [t.point["lr"] for t in tried["a"]] == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert [t.point for t in tried["a"]] == [t.point for t in tried["b"]]
    assert best_trial(tried["a"]).point == {"lr": 10.0} and best_trial(tried["b"]).point == {
        "lr": 0.1
    }
    assert budget(tried["a"]) == budget(tried["b"]) == 5


def test_a_failed_end_is_no_optimum():
    rows = [row_of("a", over("lr", RATES))]
    tried = drive(parse_search("grid"), rows, lambda n, p, s: None if p["lr"] == 1 else p["lr"])
    assert len(tried["a"]) == 3 and best_trial(tried["a"]).point == {"lr": 0.1}


def test_edges_are_of_numbers_with_more_than_one_value():
    points = product(over("lr", RATES), over("name", ("sgd", "adamw")), over("wd", (0.0,)))
    assert edges({"lr": 0.01, "name": "sgd", "wd": 0.0}, points) == {"lr": -1}
    assert edges({"lr": 1.0, "name": "sgd", "wd": 0.0}, points) == {"lr": 1}
    assert edges({"lr": 0.1, "name": "sgd", "wd": 0.0}, points) == {}


def test_halving_keeps_the_best_and_lengthens_them():
    rows = [row_of("a", over("lr", range(1, 10)))]
    tried = drive(parse_search("halving(factor=3, rungs=3)"), rows, lambda n, p, s: p["lr"])["a"]
    shares = [t.share for t in tried]
    assert shares == [1 / 9] * 9 + [1 / 3] * 3 + [1.0]
    assert [t.point["lr"] for t in tried[9:]] == [9, 8, 7, 9]
    assert budget(tried) == pytest.approx(3.0)
    assert best_trial(tried).point == {"lr": 9}


def test_halving_keeps_the_ceiling_of_a_share_and_the_earlier_of_equals():
    rows = [row_of("a", over("lr", range(7)))]

    def value(name, point, share):
        return {0: 1.0, 3: 2.0, 5: 2.0}.get(point["lr"], 0.5)

    tried = drive(parse_search("halving(factor=2, rungs=3)"), rows, value)["a"]
    by_share = {}
    for trial in tried:
        by_share.setdefault(trial.share, []).append(trial.point["lr"])
    # 7 points, then ceil(7 / 2), then ceil(4 / 2): the best two are equal, 1 stands before 2.
    assert by_share == {0.25: [*range(7)], 0.5: [3, 5, 0, 1], 1.0: [3, 5]}
    assert best_trial(tried).point == {"lr": 3}


def test_halving_drops_failed_points_first():
    rows = [row_of("a", over("lr", range(4)))]
    values = {0: None, 1: -5.0, 2: None, 3: -9.0}
    tried = drive(
        parse_search("halving(factor=2, rungs=2)"), rows, lambda n, p, s: values[p["lr"]]
    )["a"]
    assert [t.point["lr"] for t in tried if t.share == 1.0] == [1, 3]


def test_halving_ranks_by_the_scores_of_the_rung_alone():
    rows = [row_of("a", over("lr", range(4)))]

    def value(name, point, share):
        return point["lr"] if share == 0.25 else -point["lr"]  # the order turns around

    tried = drive(parse_search("halving(factor=2, rungs=3)"), rows, value)["a"]
    assert [t.point["lr"] for t in tried] == [0, 1, 2, 3, 3, 2, 2]


def test_only_trials_of_full_length_can_be_chosen_and_the_earlier_of_equals_is():
    trials = [
        Trial({"lr": 1}, 1 / 3, 9.0),
        Trial({"lr": 2}, 1.0, None),
        Trial({"lr": 3}, 1.0, -2.0),
        Trial({"lr": 4}, 1.0, -2.0),
        Trial({"lr": 5}, 1.0, -3.0),
    ]
    assert best_trial(trials) is trials[2]
    assert best_trial(trials[:2]) is None and best_trial([]) is None


@pytest.mark.parametrize(
    ("values", "aim", "expected"),
    [
        ((0.01, 0.1, 1.0), math.inf, 10.0),  # one ratio at the upper end
        ((0.01, 0.1, 1.0), 0.0, 0.001),
        ((1e-3, 3e-3, 0.5), math.inf, 83.3),  # three digits of 0.5 * 0.5 / 0.003
        ((0.0, 0.1, 0.3), math.inf, 0.9),
        ((0.0, 0.1, 0.3), -math.inf, -0.1),  # one difference where a value is 0
        ((-2.0, -1.0), math.inf, 0.0),
        ((-1.0, 1.0), math.inf, 3.0),
        ((0.0, 0.1), math.inf, 0.2),
    ],
)
def test_a_grid_goes_on_beyond_its_end_by_one_ratio_or_one_difference(values, aim, expected):
    rows = [row_of("a", over("lr", values))]
    sign = 1 if aim > 0 else -1
    tried = drive(parse_search("grid(extend=1)"), rows, lambda n, p, s: sign * p["lr"])["a"]
    assert [t.point["lr"] for t in tried[: len(values)]] == list(values)
    assert [t.point["lr"] for t in tried[len(values) :]] == [pytest.approx(expected)]


def test_both_ends_are_extended_where_rows_differ():
    rows = [row_of(name, over("lr", RATES)) for name in "ab"]
    sign = {"a": 1, "b": -1}
    tried = drive(parse_search("grid(extend=1)"), rows, lambda n, p, s: sign[n] * p["lr"])
    for name in "ab":
        assert sorted(t.point["lr"] for t in tried[name]) == [0.001, 0.01, 0.1, 1.0, 10.0]


def test_an_extended_grid_stays_a_full_product():
    points = product(over("lr", RATES), over("name", ("sgd", "adamw")))
    rows = [row_of("a", points)]
    tried = drive(
        parse_search("grid(extend=1)"), rows, lambda n, p, s: p["lr"] * (p["name"] == "sgd")
    )["a"]
    assert [t.point for t in tried[6:]] == product(
        over("lr", [10.0]), over("name", ("sgd", "adamw"))
    )


@pytest.mark.parametrize(
    "points",
    [
        [{"lr": 0.1, "wd": 0.0}, {"lr": 1.0, "wd": 0.1}],
        over("nesterov", (False, True)),
        over("name", ("adamw", "sgd")),
        over("lr", [0.1]),
    ],
)
def test_points_that_are_no_full_product_and_values_that_are_no_numbers_are_not_extended(points):
    tried = drive(
        parse_search("grid(extend=2)"), [row_of("a", points)], lambda n, p, s: points.index(p)
    )["a"]
    assert [t.point for t in tried] == points


def test_where_all_points_are_equal_the_first_is_best_and_its_end_is_extended():
    rows = [row_of("a", over("lr", RATES))]
    tried = drive(parse_search("grid(extend=1)"), rows, lambda n, p, s: 0.5)["a"]
    assert [t.point["lr"] for t in tried] == [*RATES, 0.001]
    assert best_trial(tried).point == {"lr": 0.01}


def test_a_budget_counts_shares():
    trials = [Trial({}, 1 / 3, 0.1), Trial({}, 1 / 3, None), Trial({}, 1.0, 0.2)]
    assert budget(trials) == pytest.approx(5 / 3)


@settings(max_examples=50)
@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=6, unique=True),
    st.sampled_from(["grid(extend=2)", "halving(factor=2, rungs=3)"]),
    st.integers(0, 10**6),
)
def test_a_search_continues_from_a_part_of_its_trials(values, text, seed):
    def value(name, point, share):
        return math.sin(seed * point["lr"] + share)

    rows = [row_of("a", over("lr", values)), row_of("b", over("lr", values))]
    whole = drive(parse_search(text), rows, value)
    assert budget(whole["a"]) == pytest.approx(budget(whole["b"]))
    for cut in range(len(whole["a"])):
        asked = parse_search(text).propose(rows[0], {"a": whole["a"][:cut], "b": whole["b"][:cut]})
        known = [(t.point, t.share) for t in whole["a"][:cut]]
        assert all(proposal not in known for proposal in asked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gird", "'grid'"),
        ("grid(extend=-1)", ">= 0"),
        ("halving(factor=1)", ">= 2"),
        ("grid(more=1)", "more"),
        ("grid + grid", "unknown search"),
    ],
)
def test_wrong_searches_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_search(text)


def test_optuna_stays_in_the_space_and_goes_on_as_if_uncut():
    pytest.importorskip("optuna")
    points = product(over("lr", (1e-3, 1.0)), over("name", ("sgd", "adamw")), over("k", (1, 5)))
    rows = [row_of("a", points), row_of("b", points)]

    def value(name, point, share):
        return -abs(math.log(point["lr"] / 0.1)) if point["name"] == "sgd" else None

    tried = drive(parse_search("optuna(trials=10, batch=3)"), rows, value)
    assert len(tried["a"]) == len(tried["b"]) == 10
    for trial in tried["a"]:
        assert 1e-3 <= trial.point["lr"] <= 1 and trial.point["k"] in range(1, 6)
        assert trial.point["name"] in ("sgd", "adamw")
    for cut in (0, 3, 6):
        half = {name: trials[:cut] for name, trials in tried.items()}
        asked = parse_search("optuna(trials=10, batch=3)").propose(rows[0], half)
        assert [point for point, _ in asked] == [t.point for t in tried["a"][cut : cut + 3]]


def test_optuna_refuses_a_row_without_points():
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match="nothing to tune"):
        parse_search("optuna").propose(row_of("a", [{}]), {})


def test_rows_with_rates_of_their_own_are_extended_at_the_same_ends():
    rows = [row_of("a", over("lr", RATES)), row_of("b", over("lr", (0.3, 1.0, 3.0)))]
    aims = {"a": 10.0, "b": 1.0}  # row a is best beyond its highest rate, row b inside
    tried = drive(
        parse_search("grid(extend=1)"), rows, lambda n, p, s: -abs(math.log(p["lr"] / aims[n]))
    )
    assert [t.point["lr"] for t in tried["a"]] == [0.01, 0.1, 1.0, 10.0]
    assert [t.point["lr"] for t in tried["b"]] == [0.3, 1.0, 3.0, 9.0]
    assert budget(tried["a"]) == budget(tried["b"]) == 4

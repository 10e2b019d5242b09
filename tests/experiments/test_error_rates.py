"""The test between two rows keeps its error rate, where the tests that it replaces do not."""

import itertools

import pytest

from experiments.error_rates import Setting, rates


def test_equal_schemes_whose_seeds_differ_are_seldom_called_different():
    found = rates(Setting(3, 60, 0.5, 0.7, 0.7), 150)
    # 5 % of 150 pairs is 7.5, with a standard deviation of 2.7.
    assert 100 * 1 / 150 <= found.crossed <= 100 * 16 / 150
    assert found.pooled > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "examples", "effect"),
    [
        *itertools.product((3, 5), (200,), (0.0, 0.1, 0.3, 1.0)),
        (3, 50, 0.3), (3, 50, 1.0), (3, 1000, 0.3), (5, 1000, 0.3),
    ],
)  # fmt: skip
def test_of_equal_pairs_about_five_per_cent_are_called_different(seeds, examples, effect):
    # The standard error of a share of 5 % is 0.34 %.
    found = rates(Setting(seeds, examples, effect, 0.7, 0.7), 4000)
    assert 3.5 <= found.crossed <= 6.5
    assert found.coverage >= 92


@pytest.mark.slow
@pytest.mark.parametrize("effect", [0.0, 0.1, 0.3, 1.0])
def test_with_two_seeds_it_is_careful(effect):
    assert rates(Setting(2, 200, effect, 0.7, 0.7), 1000).crossed <= 6.5


@pytest.mark.slow
def test_a_real_difference_is_noticed():
    found = rates(Setting(5, 1000, 0.1, 0.7, 0.7, gain=0.5), 300)
    assert found.crossed > 90

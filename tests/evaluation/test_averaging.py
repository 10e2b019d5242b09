"""The choice of an average: exact end points, weights in their order, validation alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from finetune_jax.artifact.averaging import average, uniform
from finetune_jax.evaluation import averaging
from finetune_jax.evaluation.averaging import _interpolate, _Members, _soup, _TimeLeft
from finetune_jax.tasks import Classification, Regression


def variables(*values):
    return {"params": {"head": {"bias": np.array(values, np.float32)}}}


def value(of):
    return of["params"]["head"]["bias"]


class Members(_Members):
    """Members whose score is a function of the first scalar; counts recomputed statistics."""

    @classmethod
    def of(cls, task, score, *weights):
        names = [f"run{i}" for i in range(len(weights))]
        artifacts = [SimpleNamespace(variables=w, task=task) for w in weights]
        members = cls(names, artifacts, {}, set(), [], None, 1)
        object.__setattr__(members, "calls", [])
        object.__setattr__(members, "function", score)
        return members

    def score(self, variables, split):
        assert split == "validation"
        metric = self.first.task.metric
        return {metric: self.function(float(value(variables)[0])), "n_scored": 1}

    def with_statistics(self, variables):
        self.calls.append(float(value(variables)[0]))
        return variables


TASK = Classification(("a", "b"))


def test_alpha_is_the_weight_of_the_second_member_and_ends_are_exact():
    a, b = variables(0.1, 7.0), variables(1.1, 7.0)
    members = Members.of(TASK, lambda x: 1 - abs(x - 0.4), a, b)
    rows, chosen, final = _interpolate(members, (0, 0.3, 1))
    assert [row["alpha"] for row in rows] == [0, 0.3, 1]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.7, 1.0, 0.3])
    assert chosen == {"alpha": 0.3}
    exact = np.float32(0.7 * np.float64(np.float32(0.1)) + 0.3 * np.float64(np.float32(1.1)))
    assert value(final)[0] == exact and value(final)[1] == 7.0
    # End points keep the statistics of their member.
    assert members.calls == pytest.approx([0.4])
    assert not any(row["recomputed"] for row in rows)  # the members have equal statistics
    members.statistics.add("stem")
    again, _, _ = _interpolate(members, (0, 0.3, 1))
    assert [row["recomputed"] for row in again] == [False, True, False]
    members.statistics.clear()
    members.calls.clear()
    for alpha, member in ((0, a), (1, b)):
        _, _, final = _interpolate(members, (alpha,))
        assert value(final).tobytes() == value(member).tobytes()


def test_a_metric_that_falls_is_chosen_by_its_minimum():
    members = Members.of(Regression(), lambda x: abs(x - 0.5), variables(0.0), variables(1.0))
    rows, chosen, final = _interpolate(members, (0, 0.5, 1))
    assert chosen == {"alpha": 0.5} and value(final)[0] == 0.5
    soup = Members.of(
        Regression(), lambda x: abs(x - 1), variables(5.0), variables(0.8), variables(1.3)
    )
    _, kept, final = _soup(soup, "greedy")
    assert kept == {"members": ["run1", "run2"]}
    assert value(final)[0] == pytest.approx(1.05)


def test_a_uniform_soup_is_the_mean_of_all_with_new_statistics():
    soup = Members.of(TASK, lambda x: x, variables(0.0), variables(1.0), variables(5.0))
    rows, kept, final = _soup(soup, "uniform")
    assert [(row["member"], row["accuracy"]) for row in rows] == [
        ("run0", 0.0), ("run1", 1.0), ("run2", 5.0),
    ]  # fmt: skip
    assert kept == {"members": ["run0", "run1", "run2"]}
    assert value(final)[0] == pytest.approx(2.0)
    assert soup.calls == pytest.approx([2.0])


def test_the_time_left_does_not_count_what_the_first_point_compiles(monkeypatch):
    times = iter([0.0, 60.0, 62.0, 66.0])
    monkeypatch.setattr(averaging.time, "monotonic", lambda: next(times))
    left = _TimeLeft(11)
    assert [left.after_one() for _ in range(3)] == ["0:10:00 left", "0:00:18 left", "0:00:32 left"]


def test_weights_are_shares():
    members = [variables(1.0), variables(2.0)]
    for weights in ([0.5, 0.4], [1.0], [0.5, 0.6]):
        with pytest.raises(ValueError, match="weights that sum to 1"):
            average(members, weights)
    assert uniform(4) == [0.25] * 4

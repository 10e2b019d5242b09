"""Points are chosen on validation, whatever their test scores; the runs are scripted."""

import json
import types
from pathlib import Path

import pytest

from finetune_jax.ablation import conduct, worker
from finetune_jax.ablation.axes import over, product
from finetune_jax.ablation.conduct import Conductor
from finetune_jax.ablation.study import Study
from finetune_jax.config import default
from finetune_jax.errors import UserError

RATE = "optimizer.learning_rate"


class Scripted:
    """A launcher whose runs end at once, with scores from functions.

    Args:
      validation: score of a resolved config; None fails the run.
      test: score of a resolved config.
      metric: name of the score.
    """

    def __init__(self, validation, test, metric="accuracy"):
        self.validation, self.test, self.metric = validation, test, metric
        self.configs, self.trained, self.scored = {}, [], []

    def run(self, units, poll):
        for unit in units:
            content = json.loads(unit.read_text())
            for arm in content["arms"]:
                folder = Path(arm["folder"])
                if content["what"] == "train":
                    self.train(folder, arm["config"])
                else:
                    config = self.configs[str(folder)]
                    self.scored.append(config)
                    scores = {self.metric: self.test(config), "n_scored": 10}
                    worker.write_scores(folder, arm["asked"], {"test": scores, "others": {}})
            poll()

    def train(self, folder, config):
        self.configs[str(folder)] = config
        self.trained.append(config)
        value = self.validation(config)
        if value is None:
            worker.write_result(folder, {"error": "loss is nan"})
            return
        worker.write_result(folder, {
            "validation": {self.metric: value}, "cost": None, "trainable_params": 1,
            "total_params": 2, "train_flops": 0.0, "seconds": 1.0, "steps": 3,
        })  # fmt: skip


@pytest.fixture
def outcome_of(tmp_path, monkeypatch):
    """Runs a study whose task has a metric that is better in a direction."""

    def run(launcher, better="max", **changes):
        task = types.SimpleNamespace(metric=launcher.metric, better=better)
        monkeypatch.setattr(
            conduct, "open_setup", lambda c: types.SimpleNamespace(task=task, config=c)
        )
        monkeypatch.setattr(conduct.ArmInputs, "of", lambda *_: {"versions": {}})
        values = {
            "rows": over("scheme", ["head", "full"]), "tune": over(RATE, [0.01, 0.1, 1.0]),
            "search": "grid(extend=0)", "seeds": (0, 1), "tune_seeds": (0,),
        }  # fmt: skip
        study = Study(**{**values, **changes})
        return Conductor(study, default(), tmp_path / "ablation", launcher).run({})

    return run


def rate(config):
    return config["optimizer"]["learning_rate"]


@pytest.mark.parametrize("better", ["max", "min"])
def test_the_best_on_validation_is_chosen_and_it_alone_is_scored(outcome_of, better):
    sign = 1 if better == "max" else -1
    # On test the order is the other way around.
    on_validation = {0.01: 0.5, 0.1: 0.7, 1.0: 0.6}
    on_test = {0.01: 0.9, 0.1: 0.1, 1.0: 0.8}
    launcher = Scripted(
        lambda c: sign * on_validation[rate(c)], lambda c: sign * on_test[rate(c)], "score"
    )
    outcome = outcome_of(launcher, better)
    assert (outcome.metric, outcome.better) == ("score", better)
    assert [row.point for row in outcome.rows] == [{RATE: 0.1}] * 2
    assert [row.edges for row in outcome.rows] == [()] * 2
    assert {rate(c) for c in launcher.scored} == {0.1} and len(launcher.scored) == 4
    for row in outcome.rows:
        assert [t.value for t in row.trials] == [0.5, 0.7, 0.6]  # more is better in trials
        assert {s["score"] for s in row.test.values()} == {sign * 0.1}
        assert {s["score"] for s in row.validation.values()} == {sign * 0.7}
    # 2 rows x 3 points with the tuning seed, and the second seed of the chosen points.
    assert len(launcher.trained) == 8
    assert all(config["data"]["test"] == "" for config in launcher.trained)


def test_a_point_is_judged_by_its_mean_over_the_tuning_seeds(outcome_of):
    by_seed = {(0.01, 0): 0.9, (0.01, 1): 0.1, (0.1, 0): 0.6, (0.1, 1): 0.6}
    launcher = Scripted(lambda c: by_seed.get((rate(c), c["seed"]), 0.0), lambda c: 0.5)
    outcome = outcome_of(
        launcher, rows=over("scheme", ["head"]), tune=over(RATE, [0.01, 0.1]), tune_seeds=(0, 1)
    )
    row = outcome.rows[0]
    assert row.point == {RATE: 0.1} and [t.value for t in row.trials] == [0.5, 0.6]
    assert row.budget == 4 and outcome.tuning_seeds == 2


def test_of_equal_points_the_first_is_chosen(outcome_of):
    outcome = outcome_of(Scripted(lambda c: 0.5, rate))
    assert [row.point for row in outcome.rows] == [{RATE: 0.01}] * 2
    assert [row.edges for row in outcome.rows] == [(RATE,)] * 2


def test_a_point_with_a_failed_seed_is_never_chosen(outcome_of):
    def validation(config):
        return None if (rate(config), config["seed"]) == (1.0, 1) else rate(config)

    row = outcome_of(Scripted(validation, rate), tune_seeds=(0, 1)).rows[0]
    assert row.point == {RATE: 0.1} and [t.value for t in row.trials] == [0.01, 0.1, None]


def test_a_chosen_point_that_fails_with_another_seed_keeps_its_error(outcome_of):
    def validation(config):
        return None if config["seed"] == 1 else rate(config)

    launcher = Scripted(validation, rate)
    row = outcome_of(launcher).rows[0]
    assert row.point == {RATE: 1.0} and row.errors == {1: "loss is nan"}
    assert list(row.test) == list(row.validation) == [0]
    assert {config["seed"] for config in launcher.scored} == {0}
    assert row.cost is not None and list(row.predictions) == [0]


def test_a_row_whose_points_all_fail_is_not_scored(outcome_of):
    def validation(config):
        return None if config["scheme"] == "head" else 0.5

    launcher = Scripted(validation, rate)
    lost, other = outcome_of(launcher).rows
    assert lost.point is None and lost.cost is None and lost.test == {}
    assert len(lost.trials) == 3 and lost.budget == other.budget == 3
    assert {config["scheme"] for config in launcher.scored} == {"full"}


def test_rows_of_tables_with_other_metrics_are_refused(outcome_of, monkeypatch, tmp_path):
    def opened(config):
        task = types.SimpleNamespace(
            metric="accuracy" if config.scheme == "head" else "rmse", better="max"
        )
        return types.SimpleNamespace(task=task, config=config)

    monkeypatch.setattr(conduct, "open_setup", opened)
    monkeypatch.setattr(conduct.ArmInputs, "of", lambda *_: {"versions": {}})
    study = Study(rows=over("scheme", ["head", "full"]))
    with pytest.raises(UserError, match="one metric, found 'head' accuracy, 'full' rmse"):
        Conductor(study, default(), tmp_path / "new", Scripted(rate, rate))
    assert not (tmp_path / "new").exists()


def test_halving_trains_shorter_runs_and_chooses_among_the_full_ones(outcome_of):
    def validation(config):
        # The short runs prefer the point that is worst in the end.
        return rate(config) if config["train"]["epochs"] < 10 else 0.9

    launcher = Scripted(validation, rate)
    base = default()
    outcome = outcome_of(
        launcher, rows=over("scheme", ["head"]), search="halving(factor=3, rungs=2)", seeds=(0,)
    )
    row = outcome.rows[0]
    assert [(t.share, t.point[RATE]) for t in row.trials] == [
        (pytest.approx(1 / 3), 0.01), (pytest.approx(1 / 3), 0.1), (pytest.approx(1 / 3), 1.0),
        (1.0, 1.0),
    ]  # fmt: skip
    assert row.point == {RATE: 1.0} and row.budget == pytest.approx(2.0)
    epochs = [config["train"]["epochs"] for config in launcher.trained]
    assert epochs == pytest.approx([base.train.epochs / 3] * 3 + [base.train.epochs])


def test_tables_are_tuned_apart(outcome_of):
    rows = product(over("data.source", ["digits", "folder:a"]), over("scheme", ["head"]))

    def validation(config):
        return rate(config) if config["data"]["source"] == "digits" else -abs(rate(config) - 0.1)

    outcome = outcome_of(Scripted(validation, rate), rows=rows, search="grid(extend=1)")
    extended, inside = outcome.rows
    # Only the table whose best is at an end gets another point.
    assert [t.point[RATE] for t in extended.trials] == [0.01, 0.1, 1.0, 10.0]
    assert [t.point[RATE] for t in inside.trials] == [0.01, 0.1, 1.0]
    assert extended.point == {RATE: 10.0} and inside.point == {RATE: 0.1}

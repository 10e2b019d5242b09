"""An outcome with rows of every kind, and its report."""

import pytest
from synthetic import HOSTILE, RATE, cost, make_outcome, make_row, rights

from finetune_jax.ablation.report.write import write_report
from finetune_jax.ablation.search.base import Trial


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Rows of every kind: extra columns, a name with markup, a best point at an end, failures."""
    folder = tmp_path_factory.mktemp("outcome")

    def others(level):
        shift = {"accuracy": level - 0.2, "accuracy_low": 0.1, "accuracy_high": 0.9}
        return {
            "corruptions": {
                s: {"metric": "accuracy", "mean": {"fog": level - 0.1 + 0.01 * s, "spatter": 0.1},
                    "mean_corrupted": level - 0.1 + 0.01 * s, "main": ["fog"]}
                for s in range(3)
            },
            "shifts": {s: {"cifar10_1": {"not_run": "needs CIFAR-10.1"}, "far": shift}
                       for s in range(3)},
            "drift": {s: {"feature_drift_relative": 0.25} for s in range(3)},
        }  # fmt: skip

    tried = (Trial({RATE: 0.01}, 1 / 3, 0.4), Trial({RATE: 0.1}, 1.0, 0.8),
             Trial({RATE: 1.0}, 1.0, None), Trial({RATE: 0.01}, 1.0, 0.7))  # fmt: skip
    rows = [
        make_row(folder, "full", rights(0.9), cost=cost(5_000_000, 2e9), others=others(0.9)),
        make_row(folder, "linear_probe", rights(0.6, start=9), cost=cost(650, 0.0),
                 others=others(0.6), trials=tried, edges=(RATE,)),
        make_row(folder, HOSTILE, rights(0.55, start=20), cost=cost(800, 10.0)),
        make_row(folder, "half", rights(0.7, seeds=(0, 2)), errors={1: "loss is nan\nat step 7"}),
        make_row(folder, "lost", {}, failed=True, trials=(Trial({RATE: 0.1}, 1.0, None),)),
    ]  # fmt: skip
    return make_outcome(rows)


@pytest.fixture(scope="module")
def written(outcome, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "report"
    return folder, write_report(outcome, folder)

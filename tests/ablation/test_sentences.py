"""The sentences about a table say what its tests say, and nothing that they do not say."""

import dataclasses
import json

import numpy as np
import pytest
from synthetic import classified, cost, make_outcome, make_row, regressed, rights

from finetune_jax.ablation.report.sentences import sentences
from finetune_jax.ablation.report.statistics import compare
from finetune_jax.ablation.report.write import best_run, terminal_tables, write_report


def said(rows, metric="accuracy", **changes):
    outcome = make_outcome(rows, metric, **changes)
    (comparison,) = compare(outcome)
    return sentences(comparison, outcome)


def one_seed(folder, right, costs, n=150):
    """Rows of one seed: of each row, the first examples are right."""
    return [
        make_row(folder, name, {0: classified(np.arange(n) < k)}, cost=spent)
        for (name, k), spent in zip(right.items(), costs, strict=True)
    ]


def test_two_rows_that_are_not_told_apart_and_the_cost_of_the_dearer_one(tmp_path):
    rows = one_seed(tmp_path, {"probe": 120, "last": 123}, [cost(10, 1e6), cost(10, 2e8)])
    assert said(rows, seeds=(0,)) == [
        "last and probe are not told apart on 150 test examples with 1 seed: accuracy "
        "82.0 % [75.1, 87.3] and 80.0 % [72.9, 85.6] (one seed: training again is not covered).",
        "last is not shown to be better than probe at 200 times the FLOPs of a step.",
    ]


def test_the_best_of_three_seeds_and_what_it_is_better_than(tmp_path):
    rows = [make_row(tmp_path, "poor", rights(0.4, start=3)),
            make_row(tmp_path, "good", rights(0.9))]  # fmt: skip
    (text,) = said(rows)
    assert text.startswith("good has the best accuracy on 200 test examples with 3 seeds, ")
    assert text.endswith(" %, and is better than poor.") or text.endswith(
        "], and is better than poor."
    )


def test_rows_that_are_worse_and_rows_that_are_not_told_apart(tmp_path):
    right = {"best": 120, "near": 119, "same": 118, "poor": 60, "worst": 10}
    costs = [cost(10, 1e6), cost(30, 3e6), cost(1, 1e5), cost(1, 1e5), cost(1, 1e5)]
    first, second = said(one_seed(tmp_path, right, costs), seeds=(0,))
    assert first.startswith("best has the best accuracy on 150 test examples with 1 seed, 80.0 % [")
    assert "], and is better than poor and worst; near and same are not told apart from it" in first
    # The dearest of those that are not told apart, against the cheapest of them.
    assert second == "near is not shown to be better than same at 30 times the FLOPs of a step."


def test_many_rows_are_counted_and_a_head_without_steps_is_compared_by_scalars(tmp_path):
    right = {"solved": 120} | {f"row{i}": 118 for i in range(5)}
    costs = [cost(10, 0.0)] + [cost(20, 1e6)] * 5
    first, second = said(one_seed(tmp_path, right, costs), seeds=(0,))
    assert first.startswith("No row is told apart on 150 test examples with 1 seed from solved,")
    assert second == "row0 is not shown to be better than solved at 2.0 times the trained scalars."
    apart = one_seed(tmp_path, {"good": 120} | {f"bad{i}": 20 for i in range(5)} | {"near": 119},
                     [cost(1, 1)] * 7)  # fmt: skip
    assert "better than bad0, bad1 and 3 other rows; near is not told apart" in said(
        apart, seeds=(0,)
    )[0]  # fmt: skip


def test_errors_are_not_per_cent_and_less_is_better(tmp_path):
    error = np.linspace(-1, 1, 80)
    rows = [make_row(tmp_path, name, {0: regressed(scale * error)})
            for name, scale in (("far", 1.0), ("near", 0.1))]  # fmt: skip
    (text,) = said(rows, "rmse", better="min", seeds=(0,))
    assert text.startswith("near has the best root mean squared error on 80 test examples")
    assert "0.0585" in text and "is better than far" in text


def test_without_a_score_or_a_test_nothing_is_claimed(tmp_path):
    lost = make_row(tmp_path, "lost", {}, failed=True)
    alone = make_row(tmp_path, "alone", rights(0.5, seeds=(0,)))
    assert said([lost]) == ["No row has a score on the test split."]
    assert said([lost, alone], seeds=(0,))[0].endswith("with 1 seed; no other row has a score.")
    untested = [make_row(tmp_path, name, rights(0.5, start=i)) for i, name in enumerate("ab")]
    assert said(untested, "macro_f1")[0].endswith(
        "no test over examples says whether the rows differ."
    )


@pytest.mark.slow
def test_every_report_begins_with_the_sentences(tmp_path):
    rows = one_seed(tmp_path, {"probe": 120, "last": 123}, [cost(10, 1e6), cost(10, 2e8)])
    outcome = make_outcome(rows, seeds=(0,))
    expected = said(rows, seeds=(0,))
    write_report(outcome, tmp_path / "report")
    found = json.loads((tmp_path / "report" / "summary.json").read_text())
    (table,) = found["tables"]
    assert found["metric"] == "accuracy" and table["result"] == expected
    assert [row["row"] for row in table["rows"]] == ["probe", "last"]
    assert table["rows"][0]["p"] is None and table["rows"][1]["p"] == pytest.approx(0.25)
    assert table["rows"][1]["difference"]["value"] == pytest.approx(0.02)
    text = " ".join(expected)
    assert text in (tmp_path / "report" / "table.md").read_text()
    assert f'<p class="result">{text}</p>' in (tmp_path / "report" / "index.html").read_text()
    assert terminal_tables(outcome).endswith(text)
    assert table["rows"][0]["runs"] == {"0": str(rows[0].predictions[0].parent)}


def test_the_run_to_predict_with_is_chosen_on_validation(tmp_path):
    shares = {"test is best": 0.5, "validation is best": 0.7, "undefined": None}
    rows = [
        dataclasses.replace(make_row(tmp_path, name, rights(0.9 - 0.1 * i)),
                            validation={0: {"accuracy": share}})
        for i, (name, share) in enumerate(shares.items())
    ]  # fmt: skip
    assert best_run(make_outcome(rows)) == (
        "validation is best", rows[1].predictions[0].parent
    )  # fmt: skip
    assert best_run(make_outcome(rows, better="min"))[0] == "test is best"
    assert best_run(make_outcome([dataclasses.replace(rows[0], predictions={})])) is None

"""Every example is scored exactly once, in its order, and padding never counts."""

import math

import numpy as np
import pytest

from finetune_jax.data.examples import ArrayExamples
from finetune_jax.evaluation import scores
from finetune_jax.evaluation.scores import (
    NonFinitePredictions,
    evaluate,
    forward_all,
    headline,
    observe,
)
from finetune_jax.tasks import Classification

N, BATCH = 10, 4
LABELS = np.arange(N) % 3
RIGHT = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 0], bool)
ANSWERS = np.where(RIGHT, LABELS, (LABELS + 1) % 3)


class Examples(list):
    pass


EXAMPLES = Examples({"number": i + 1, "label": LABELS[i], "answer": ANSWERS[i]} for i in range(N))


def encode(example):
    return {name: np.asarray(value, np.float32) for name, value in example.items()}


def run(step, seen=None, **options):
    def counted(variables, batch):
        assert variables == "variables"
        if seen is not None:
            seen.append(batch)
        return step(batch)

    return observe(
        counted, "variables", EXAMPLES, encode, batch_size=BATCH, place=lambda b: b, **options
    )


def test_every_example_is_observed_once_in_order_and_padding_is_not():
    seen = []
    found = run(
        lambda batch: {"number": batch["number"], "two": batch["number"][:, None] * 2}, seen
    )
    np.testing.assert_array_equal(found["number"], np.arange(1, N + 1))
    np.testing.assert_array_equal(found["two"], 2 * np.arange(1, N + 1)[:, None])
    # All batches have one shape, with zeros after the last example; the step does not get the mask.
    assert [len(batch["number"]) for batch in seen] == [BATCH] * 3
    np.testing.assert_array_equal(seen[-1]["number"], [9, 10, 0, 0])
    assert all("mask" not in batch for batch in seen)


def test_batches_are_placed_before_the_step():
    placed = []

    def place(batch):
        placed.append(len(batch["number"]))
        return {"number": batch["number"] + 100}

    found = observe(
        lambda variables, batch: batch, None, EXAMPLES, encode, batch_size=BATCH, place=place
    )
    np.testing.assert_array_equal(found["number"], np.arange(101, 101 + N))
    assert placed == [BATCH] * 3


def test_a_lost_batch_is_an_error(monkeypatch):
    whole = scores.eval_batches
    monkeypatch.setattr(scores, "eval_batches", lambda *a: list(whole(*a))[1:])
    with pytest.raises(RuntimeError, match="number: observed 6 of 10 examples"):
        run(lambda batch: {"number": batch["number"]})


def test_scores_are_means_over_examples_with_wilsons_interval():
    def step(variables, batch):
        logits = 9.0 * np.eye(3, dtype=np.float32)[batch["answer"].astype(int)]
        return Classification(("a", "b", "c")).observe(
            logits, {"label": batch["label"].astype(np.int32)}
        )

    task = Classification(("a", "b", "c"))
    found = evaluate(
        task, step, None, EXAMPLES, encode, batch_size=BATCH, place=lambda batch: batch
    )
    # The mean of the means of three batches would be (3/4 + 3/4 + 1/2) / 3.
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["n_scored"] == N
    z, share = 1.959964, 0.7
    centre = (share + z**2 / (2 * N)) / (1 + z**2 / N)
    half = z / (1 + z**2 / N) * math.sqrt(share * (1 - share) / N + z**2 / (4 * N**2))
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(
        (centre - half, centre + half), rel=1e-6
    )
    wrong, right = math.log(2 + math.e**9), math.log(2 + math.e**9) - 9
    assert found["loss"] == pytest.approx(0.3 * wrong + 0.7 * right, rel=1e-5)


@pytest.mark.parametrize("indices", [None, np.array([7, 2, 2, 9, 0])])
def test_outputs_of_chosen_examples_come_in_their_order(indices):
    seen = []

    def forward(batch):
        seen.append(batch["number"])
        return {"x": batch["number"], "y": (batch["number"] * 10,)}

    found = forward_all(
        forward, EXAMPLES, encode, batch_size=BATCH, place=lambda batch: batch, indices=indices
    )
    wanted = np.arange(N) if indices is None else indices
    np.testing.assert_array_equal(found["x"], wanted + 1)
    np.testing.assert_array_equal(found["y"][0], 10 * (wanted + 1))
    assert [len(numbers) for numbers in seen] == [BATCH] * math.ceil(len(wanted) / BATCH)
    # Padding is the first example of its batch.
    last = seen[-1]
    assert set(last[len(wanted) % BATCH :]) == {last[0]}


def test_a_process_reads_its_rows_only():
    rows = np.array([1, 3])
    read = []

    def place(batch):
        read.append(batch["number"].copy())
        whole = np.zeros(BATCH, np.float32)
        whole[rows] = batch["number"]
        return {"number": whole}

    forward_all(lambda b: b, EXAMPLES, encode, batch_size=BATCH, place=place, rows=rows)
    assert [list(numbers) for numbers in read] == [[2, 4], [6, 8], [10, 9]]


def test_a_score_is_shown_with_its_interval():
    shown = {"accuracy": 0.913, "accuracy_low": 0.9073, "accuracy_high": 0.9184, "n_scored": 10000}
    assert headline("accuracy", shown) == "accuracy 91.3 % [90.7, 91.8], n=10,000"
    assert headline("rmse", {"rmse": 1.5, "n_scored": 3}) == ("root mean squared error 1.5000, n=3")


def test_arrays_in_memory_are_examples_too():
    examples = ArrayExamples({"number": np.arange(1, 4)})
    found = observe(
        lambda variables, batch: batch, None, examples, encode, batch_size=2, place=lambda b: b
    )
    np.testing.assert_array_equal(found["number"], [1, 2, 3])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused_with_count_and_first_example(bad):
    def step(batch):
        score = np.where(batch["number"] >= 7, bad, batch["number"]).astype(np.float32)
        return {"number": batch["number"], "score": score}

    with pytest.raises(NonFinitePredictions, match="for 4 of 10 examples, the first is example 6"):
        run(step)
    with pytest.raises(NonFinitePredictions, match="for 1 of 2 examples, the first is example 8"):
        forward_all(
            lambda batch: step(batch)["score"], EXAMPLES, encode, batch_size=BATCH,
            place=lambda b: b, indices=np.array([1, 8]),
        )  # fmt: skip


def test_an_undefined_score_is_no_number_in_a_headline():
    assert (
        headline("kappa", {"kappa": math.nan, "n_scored": 3})
        == "quadratic weighted kappa undefined, n=3"
    )
    assert (
        headline("kappa", {"kappa": None, "n_scored": 3})
        == "quadratic weighted kappa undefined, n=3"
    )

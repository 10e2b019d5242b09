"""The order of training, views of cached activations, padding, and chunks of the cache."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_jax.data.batches import TrainBatches, cached, eval_batches, gather
from finetune_jax.data.examples import ActivationExamples, ArrayExamples


def numbered(count):
    return ArrayExamples({"label": np.arange(count, dtype=np.int32)})


def plain(example):
    return example


def order(count, batch_size, seed, steps):
    batches = TrainBatches(numbered(count), plain, batch_size, seed)
    return np.concatenate([batches.indices(step) for step in range(steps)]).tolist()


def test_an_order_is_its_seeds_for_ever():
    # The numbers are fixed here, because a resumed run must have the order of its first part.
    assert order(7, 4, seed=0, steps=4) == [0, 5, 1, 6, 2, 4, 3, 2, 0, 4, 1, 5, 3, 6, 5, 1]
    assert order(7, 4, seed=1, steps=4) == [0, 5, 4, 1, 2, 6, 3, 2, 6, 3, 1, 4, 0, 5, 6, 0]


def test_order_depends_on_seed_and_epoch_and_not_on_the_batch_size():
    assert order(50, 10, seed=0, steps=5) != order(50, 10, seed=1, steps=5)
    epochs = np.reshape(order(50, 10, seed=3, steps=15), (3, 50)).tolist()
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert order(50, 10, seed=3, steps=15) == order(50, 3, seed=3, steps=50)


def activations(count, views, inputs=1):
    """View v of example i has ``inputs`` rows of the value 100 v + i."""

    def read(numbers):
        values = 100.0 * (numbers // count) + numbers % count
        return {"x": np.repeat(values, inputs)[:, None]}

    return ActivationExamples(read, {"label": np.arange(count, dtype=np.int32)}, views)


def test_each_epoch_reads_its_view_of_every_example():
    batches = TrainBatches(activations(6, views=3), plain, 2, seed=0)
    for epoch in range(7):
        read = [batches.batch(step) for step in range(3 * epoch, 3 * epoch + 3)]
        labels = np.concatenate([batch["label"] for batch in read])
        values = np.concatenate([batch["activation"]["x"][:, 0] for batch in read])
        assert sorted(labels.tolist()) == list(range(6))
        np.testing.assert_array_equal(values, 100 * (epoch % 3) + labels)


@pytest.mark.parametrize("hosts", [1, 2])
def test_padding_keeps_all_inputs_of_an_example_together(hosts):
    found = []
    for rows in np.arange(4).reshape(hosts, -1):
        last = list(eval_batches(activations(5, 1, inputs=2), plain, 4, rows=rows))[-1]
        assert last["mask"].tolist() == [1, 0, 0, 0]
        assert last["label"].shape == (len(rows),)
        found += last["activation"]["x"][:, 0].tolist()
    assert found == [4, 4, 0, 0, 0, 0, 0, 0]


def test_padding_is_zeros_of_the_dtype_of_each_array():
    arrays = {"label": np.full(3, 7, np.int32), "image": np.full((3, 2, 2), 9, np.uint8)}
    last = list(eval_batches(ArrayExamples(arrays), plain, 2))[-1]
    assert last["label"].tolist() == [7, 0] and last["label"].dtype == np.int32
    assert last["image"].reshape(2, -1).tolist() == [[9] * 4, [0] * 4]
    assert last["image"].dtype == np.uint8 and last["mask"].dtype == np.float32


def test_a_full_last_batch_has_no_padding():
    assert [b["mask"].tolist() for b in eval_batches(numbered(4), plain, 2)] == [[1, 1], [1, 1]]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 150])
def test_the_cache_has_every_example_at_its_number(count):
    def encode(example):
        return {"x": np.array([example["label"], -example["label"]], np.int64)}

    kept = cached(numbered(count), encode, count * 16)
    assert kept.arrays["x"].tolist() == [[i, -i] for i in range(count)]
    examples = numbered(count)
    assert cached(examples, encode, count * 16 - 1) is examples


def test_gather_reads_encoded_examples_without_encoding_them_again():
    kept = cached(numbered(5), lambda e: {"x": np.float32(e["label"])}, 2**20)

    def never(example):
        raise AssertionError

    found = gather(kept, np.array([4, 0, 4]), never)
    assert found["x"].tolist() == [4, 0, 4]

from collections import Counter

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from finetune_jax.data.augment import parse_augment
from finetune_jax.data.batches import TrainBatches, cached, eval_batches
from finetune_jax.data.examples import ArrayExamples
from finetune_jax.data.preprocess import ImagePreprocess, from_json
from finetune_jax.data.sources import open_source
from finetune_jax.data.splits import resolve_split


def numbered(count):
    images = np.zeros((count, 4, 4, 3), np.uint8)
    return ArrayExamples({"image": images, "label": np.arange(count, dtype=np.int32)})


def plain(example):
    return example


def rows_of(batch_size, hosts):
    """Rows of a batch that each of some hosts reads."""
    return np.arange(batch_size).reshape(hosts, -1)


@given(st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 2, 4]))
def test_evaluation_sees_every_example_once_in_order(count, share, hosts):
    batch_size, seen = share * hosts, []
    parts = [
        eval_batches(numbered(count), plain, batch_size, rows=rows)
        for rows in rows_of(batch_size, hosts)
    ]
    for slices in zip(*parts, strict=True):
        # Every host knows which rows of the whole batch count.
        masks = [part["mask"].tolist() for part in slices]
        assert len(masks[0]) == batch_size and masks.count(masks[0]) == hosts
        labels = np.concatenate([part["label"] for part in slices])
        assert len(labels) == batch_size and not labels[np.array(masks[0]) == 0].any()
        seen += labels[np.array(masks[0]) > 0].tolist()
    assert seen == list(range(count))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 9))
def test_an_epoch_is_a_permutation_and_epochs_differ(count, batch_size, seed):
    batches = TrainBatches(numbered(count), plain, batch_size, seed)
    order = np.concatenate([batches.indices(step) for step in range(3 * count)])
    epochs = [order[e * count : (e + 1) * count].tolist() for e in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(range(count))
    assert count < 8 or epochs[0] != epochs[1]


@settings(deadline=None)
@given(st.integers(0, 20), st.sampled_from([1, 2, 4]))
def test_order_is_the_same_from_any_start_and_on_any_number_of_hosts(start, hosts):
    whole = TrainBatches(numbered(37), plain, 8, seed=3)
    expected = [whole.batch(step)["label"].tolist() for step in range(start, start + 4)]
    parts = [TrainBatches(numbered(37), plain, 8, 3, rows) for rows in rows_of(8, hosts)]
    streams = [list(part.iterate(start, start + 4)) for part in parts]
    joined = [sum((s[i]["label"].tolist() for s in streams), []) for i in range(4)]
    assert joined == expected


def test_the_order_is_right_when_another_thread_asks_in_between():
    class Interrupted(TrainBatches):
        """Requests another epoch after every assignment to the cache, as another thread could."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name.startswith("_") and not vars(self).get("_busy"):
                super().__setattr__("_busy", True)
                self.indices(4)
                super().__setattr__("_busy", False)

    expected = TrainBatches(numbered(8), plain, 8, 0).indices(0)
    batches = Interrupted(numbered(8), plain, 8, 0)
    assert batches.indices(0).tolist() == expected.tolist()
    assert batches.indices(0).tolist() == expected.tolist()


def test_a_reading_error_surfaces_in_the_consumer():
    class Broken:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        next(TrainBatches(Broken(), plain, 4, 0).iterate(0, 2))


def test_caching_changes_no_pixel():
    digits = open_source("digits").read("test[:20]")
    preprocess = ImagePreprocess(16, (0, 0, 0), (1, 1, 1), crop=0)
    kept = cached(digits, preprocess.host, 2**20)
    for i in range(len(digits)):
        np.testing.assert_array_equal(kept[i]["image"], preprocess.host(digits[i])["image"])
    assert cached(digits, preprocess.host, 10) is digits


def test_digits_splits_are_disjoint_stratified_and_fixed():
    source = open_source("digits")
    splits = {name: source.read(name) for name in source.splits}
    assert {name: len(s) for name, s in splits.items()} == source.splits
    assert sum(source.splits.values()) == 1797
    for split in splits.values():
        shares = np.bincount(split.arrays["label"], minlength=10) / len(split)
        assert abs(shares - 0.1).max() < 0.02
    again = source.read("test[:8]").arrays["label"]
    assert splits["test"].arrays["label"][:8].tolist() == again.tolist()


@given(st.integers(0, 100), st.integers(1, 500))
def test_percent_splits_cover_without_overlap(percent, size):
    (_, _, stop), (_, start, end) = resolve_split(f"a[:{percent}%]+a[{percent}%:]", {"a": size})
    assert stop == start
    assert end == size


def test_device_preprocessing_is_the_formula():
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    preprocess = ImagePreprocess(4, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "nearest", crop=0)
    expected = (images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    np.testing.assert_allclose(
        preprocess.device({"image": jnp.asarray(images)}), expected, atol=1e-6
    )
    assert from_json(preprocess.to_json()) == preprocess


def test_a_random_crop_is_a_window_of_the_padded_image_and_a_flip_a_mirror():
    key = jax.random.key(0)
    images = jax.random.normal(key, (16, 6, 6, 2))
    cropped = np.asarray(parse_augment("random_crop(pad=2)")(key, images, {})[0])
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for before, after in zip(padded, cropped, strict=True):
        windows = [before[i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
        assert any(np.array_equal(after, w) for w in windows)
    flipped = np.asarray(parse_augment("flip")(key, images, {})[0])
    kept = [np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)]
    turned = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)]
    assert all(k or t for k, t in zip(kept, turned, strict=True))
    assert 0 < sum(kept) < 16

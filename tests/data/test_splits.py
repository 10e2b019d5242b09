"""Split syntax, random splits of one table, and the encoding of labels."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_jax.data.labels import encode_labels
from finetune_jax.data.sources import Options
from finetune_jax.data.splits import hold_out, past_end, resolve_split, shuffled
from finetune_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [("a", 0, 18)]),
        ("a[:10%]", [("a", 0, 2)]),  # 1.8 examples
        ("a[:8%]", [("a", 0, 1)]),  # 1.44 examples
        ("a[10%:]", [("a", 2, 18)]),
        ("a[33%:66%]", [("a", 6, 12)]),  # 5.94 and 11.88 examples
        ("a[-10%:]", [("a", 16, 18)]),
        ("b[-1%:]", [("b", 5, 5)]),  # no example, as b[99%:]
        ("b[:-1%]", [("b", 0, 5)]),
        ("a[:-3]", [("a", 0, 15)]),
        ("a[-3:]", [("a", 15, 18)]),
        ("a[4:9]", [("a", 4, 9)]),
        ("a[9:4]", [("a", 9, 9)]),
        ("a[:99]", [("a", 0, 18)]),
        ("a[-99:2]", [("a", 0, 2)]),
        ("a[:200%]", [("a", 0, 18)]),
        ("b[1:] + a[:1]", [("b", 1, 5), ("a", 0, 1)]),
    ],
)
def test_ranges(text, expected):
    assert resolve_split(text, {"a": 18, "b": 5}) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian", "unknown split 'trian'. Did you mean 'train'"),
        ("train[5]", r"cannot read 'train\[5\]'"),
        ("train[:5.5%]", "cannot read"),
        ("train+", "cannot read ''"),
    ],
)
def test_another_syntax_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        resolve_split(text, {"train": 3, "test": 3})


def test_a_held_out_part_is_a_tenth_of_each_label_in_random_order():
    labels = [0] * 100 + [1] * 50
    parts = hold_out(labels, seed=3)
    assert sorted(np.concatenate([*parts.values()]).tolist()) == list(range(150))
    for name, expected in (("train", [80, 40]), ("validation", [10, 5]), ("test", [10, 5])):
        assert np.bincount([labels[i] for i in parts[name]]).tolist() == expected
        assert parts[name].tolist() != sorted(parts[name].tolist())
    assert {n: p.tolist() for n, p in parts.items()} == {
        n: p.tolist() for n, p in hold_out(labels, seed=3).items()
    }
    assert parts["test"].tolist() != hold_out(labels, seed=4)["test"].tolist()


def test_an_order_is_a_permutation_by_seed():
    assert sorted(shuffled(30, 1).tolist()) == list(range(30))
    assert shuffled(30, 1).tolist() == shuffled(30, 1).tolist() != shuffled(30, 2).tolist()
    # The order is fixed here, because it decides which examples are in a slice such as train[:90%].
    assert shuffled(6, 0).tolist() == [0, 1, 3, 2, 5, 4]


def labels(values, **options):
    return encode_labels(values, Options(**options), "file")


def test_classes_are_numbered_in_the_order_of_their_names_or_numbers():
    assert labels(["dog", " ant", "dog"]) == (("ant", "dog"), [1, 0, 1])
    assert labels(["10", "9", "10"], label_kind="class") == (("9", "10"), [1, 0, 1])
    assert labels(["10", "9", "x"], label_kind="class") == (("10", "9", "x"), [0, 1, 2])


def test_several_classes_of_an_example_are_separated_and_may_be_none():
    found = labels(["b; a", "", "c;;b"], label_kind="classes", label_sep=";")
    assert found == (("a", "b", "c"), [[1, 0], [], [2, 1]])


def test_a_label_ends_before_the_first_mark():
    assert labels(["b#1#2", "a"], label_until="#") == (("a", "b"), [1, 0])
    assert labels(["3#x", "4"], label_until="#") == ((), [3.0, 4.0])


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["a", " "], {}, "example 1: the label is empty"),
        (["1", "x"], {}, "example 1: labels are numbers, such as '1', and names, such as 'x'"),
        (["1", "inf"], {}, "example 1: the label 'inf' stands for a missing value"),
        (["1", "x"], {"label_kind": "number"}, "example 1: expected a number as the label"),
    ],
)
def test_unclear_labels_are_refused(values, options, message):
    with pytest.raises(UserError, match=f"file: .*{message}"):
        labels(values, **options)


@pytest.mark.parametrize("text", ["a", "a[:5]", "a[-5:]", "a[:200%]", "a[:3]+b[:9]"])
def test_ranges_within_a_split_are_not_reported(text):
    assert past_end(text, {"a": 5, "b": 9}) == ""


@pytest.mark.parametrize("text", ["a[:6]", "b+a[-6:]", "a[7:]"])
def test_a_range_beyond_the_end_is_reported(text):
    found = past_end(text, {"a": 5, "b": 9})
    assert found == f"{text.split('+')[-1]!r} asks for more examples than the 5 of 'a'"

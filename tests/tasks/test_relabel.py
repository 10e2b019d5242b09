"""Classes are matched by name, whatever their order, in every form a target may have."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jax.data.classes import class_numbers, renumbered
from finetune_jax.errors import UserError
from finetune_jax.tasks import Classification, MultiLabel, Ordinal, Regression
from finetune_jax.tasks.relabel import host_part

NAMES = ("ant", "bee", "cat", "dog")


_NAMES = st.lists(
    st.text(min_size=1), unique_by=lambda x: unicodedata.normalize("NFC", x), min_size=1
)


@given(_NAMES, st.data())
def test_a_number_leads_to_the_same_name(known, data):
    found = data.draw(st.permutations(known))[: data.draw(st.integers(1, len(known)))]
    numbers = class_numbers(found, known, "x")
    assert [known[number] for number in numbers] == list(found)


def test_an_unknown_class_is_refused_with_both_lists():
    with pytest.raises(UserError) as error:
        class_numbers(("zebra", "ant"), NAMES, "data.source=folder:x")
    assert str(error.value) == (
        "data.source=folder:x has classes that the model does not know: zebra\n"
        "  data:  zebra, ant\n  model: ant, bee, cat, dog"
    )
    many = [f"class {i}" for i in range(1000)]
    with pytest.raises(UserError, match=r"… \(1000\)"):
        class_numbers(many, NAMES, "x")
    with pytest.raises(UserError, match=r"\\x1b"):
        class_numbers(("\x1b[2J",), NAMES, "x")


def test_two_unicode_forms_are_one_name():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert composed != decomposed
    assert class_numbers((decomposed,), ("ant", composed), "x") == (1,)
    # Two classes of a model are never merged.
    assert class_numbers((decomposed, composed), (decomposed, composed), "x") == (0, 1)


@pytest.mark.parametrize("label", [0, np.int64(0), np.uint8(0), "dog"])
def test_labels_of_one_class(label):
    part = host_part(Classification(NAMES), ("dog", "ant"), "x")
    assert part.host({"label": label})["label"] == 3
    part = host_part(Ordinal(NAMES), ("dog", "ant"), "x")
    assert part.host({"label": label})["label"] == 3


def test_labels_of_several_classes():
    part = host_part(MultiLabel(NAMES), ("dog", "ant"), "x")
    for label in ([0, 1], np.array([0, 1]), ["dog", "ant"]):
        assert part.host({"label": label})["label"].tolist() == [1, 0, 0, 1]


def test_labels_in_an_array_move_with_their_classes_and_others_are_unknown():
    hot = np.array([1, 0], np.float32)
    part = host_part(MultiLabel(NAMES), ("dog", "ant"), "x")
    assert part.host({"label": hot})["label"].tolist() == [0, -1, -1, 1]
    part = host_part(MultiLabel(NAMES), ("ant", "bee"), "x")
    assert part.host({"label": hot})["label"].tolist() == [1, 0, -1, -1]
    assert part.host({"label": [0, 1]})["label"].tolist() == [1, 1, 0, 0]
    part = host_part(MultiLabel(NAMES[:2]), ("bee", "ant"), "x")
    assert part.host({"label": np.array([np.nan, 0])})["label"].tolist() == [0, -1]


def test_labels_in_an_array_that_become_one_are_known_by_what_is_known():
    def merged(*values):
        return renumbered({"label": np.array(values)}, (0, 0, 1), 2)["label"].tolist()

    assert merged(1.0, 0, 1) == [1, 1] and merged(0.0, 0, 1) == [0, 1]
    assert merged(1.0, np.nan, 0) == [1, 0]
    assert np.isnan(merged(0.0, np.nan, 0)[0])


def test_masks_keep_the_pixels_without_a_class():
    mask = np.array([[0, 1], [255, 1]], np.uint8)
    found = renumbered({"mask": mask}, (3, 0))["mask"]
    assert found.tolist() == [[3, 0], [255, 0]] and found.dtype == np.uint8


def test_numbers_are_read_from_the_names_of_classes():
    part = host_part(Regression(), ("1", "2.5", "10"), "x")
    assert [float(part.host({"label": i})["label"]) for i in range(3)] == [1, 2.5, 10]
    assert host_part(Regression(), ("0", "1", "2"), "x") == Regression()
    with pytest.raises(UserError, match="regression needs numbers.*such as 'pos'"):
        host_part(Regression(), ("1", "pos"), "data.source=csv:x")


def test_a_number_that_is_no_class_is_still_refused():
    part = host_part(Classification(NAMES), ("dog", "ant"), "x")
    for label in (-1, 300, 1.5):
        with pytest.raises(UserError, match="expected a class number"):
            part.host({"label": label})


def test_the_same_order_and_targets_without_classes_change_nothing():
    task = Classification(NAMES)
    assert host_part(task, NAMES, "x") is task
    assert host_part(task, ("ant", "bee"), "x") is task
    assert host_part(task, (), "x") is task

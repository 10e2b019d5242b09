"""Predictions in a file, and paired tests that refuse other data."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jax.errors import UserError
from finetune_jax.evaluation.against import compare
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.evaluation.predictions import (
    Predictions,
    identity,
    load_predictions,
    predict_split,
    save_predictions,
)
from finetune_jax.metrics.paired import mcnemar
from finetune_jax.tasks import Classification, MultiLabel, Regression


def classifier(right, seed=0, classes=("a", "b", "c"), example=None):
    """Predictions of a classifier that is right at the given examples."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(1).integers(0, len(classes), len(right))
    logits = generator.normal(size=(len(right), len(classes))).astype(np.float32)
    answer = np.where(right, labels, (labels + 1) % len(classes))
    logits[np.arange(len(right)), answer] += 9
    observed = {
        "logits": logits,
        "label": labels,
        "accuracy": (logits.argmax(-1) == labels).astype(np.float32),
        "loss": generator.random(len(right)).astype(np.float32),
    }
    names = np.arange(len(right), dtype=np.uint64) if example is None else example
    about = {"source": "made", "split": "test", "split_text": "test"}
    return Predictions(Classification(tuple(classes)), observed, names, about)


def test_a_file_gives_back_what_was_saved(tmp_path):
    before = classifier(np.arange(50) % 3 > 0)
    save_predictions(tmp_path / "p.npz", before)
    after = load_predictions(tmp_path / "p.npz")
    assert after.task == before.task
    np.testing.assert_array_equal(after.example, before.example)
    assert {key: after.about[key] for key in before.about} == before.about
    assert after.about["split_sha256"] == before.split_sha256 == after.split_sha256
    assert after.observed.keys() == before.observed.keys()
    for name, values in before.observed.items():
        np.testing.assert_array_equal(after.observed[name], values)
    assert after.scores() == before.scores()
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]


def test_hashes_are_of_the_content_written_out():
    """The hashes of files that exist already must stay comparable."""
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    parts = [
        b"image:" + str(len("|u1(1, 2, 3)") + 6).encode() + b":|u1(1, 2, 3)" + image.tobytes(),
        b"label:1:7",
        b"raw:2:ab",
    ]
    digest = hashlib.sha256(b"".join(parts)).digest()
    example = {"raw": b"ab", "label": 7, "image": image}
    assert identity(example) == int.from_bytes(digest[:8], "little")
    names = np.array([3, 1], np.uint64)
    found = Predictions(Regression(), {}, names, {})
    expected = hashlib.sha256((3).to_bytes(8, "little") + (1).to_bytes(8, "little")).hexdigest()
    assert found.split_sha256 == expected


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "p.npz"
    save_predictions(path, classifier(np.ones(3, bool)))
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    assert about["version"] == 1
    arrays["about"] = np.array(json.dumps({**about, "version": 2}))
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="version 2, this code reads 1"):
        load_predictions(path)


@pytest.mark.parametrize("change", ["array", "about", "flip", "older"])
def test_a_changed_file_is_refused_unless_an_older_version_wrote_it(tmp_path, capsys, change):
    path = tmp_path / "p.npz"
    save_predictions(path, classifier(np.ones(3, bool)))
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    if change == "array":
        arrays["observed/loss"] = arrays["observed/loss"] + 1
        np.savez(path, **arrays)
    elif change == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        removed = ("sha256", "arrays") if change == "older" else ()
        about = {k: v for k, v in about.items() if k not in removed} | {"split": "validation"}
        np.savez(path, **{**arrays, "about": np.array(json.dumps(about))})
    if change == "older":
        assert load_predictions(path).about["split"] == "validation"
        assert "older version without checksums" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=r"p\.npz: ") as error:
            load_predictions(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 broken"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "p.npz"
    with pytest.raises(UserError, match="no such file"):
        load_predictions(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="save_predictions"):
        load_predictions(path)
    np.savez(path, example=np.arange(3))
    with pytest.raises(UserError, match="save_predictions"):
        load_predictions(path)
    np.savez(path, example=np.array([{}], dtype=object), about=np.array("{}"))
    with pytest.raises(UserError, match="save_predictions"):
        load_predictions(path)


def test_paired_tests_agree_with_their_definitions():
    generator = np.random.default_rng(0)
    first, second = generator.random(400) < 0.8, generator.random(400) < 0.7
    found = compare(classifier(first), classifier(second, 5))
    assert found["ours"] == pytest.approx(first.mean())
    assert found["difference"] == pytest.approx(first.mean() - second.mean())
    assert found["p_mcnemar"] == mcnemar(first, second)
    assert found["only_ours_right"] == (first & ~second).sum()
    gaps = first.astype(float) - second
    half = 1.96 * gaps.std() / 20
    assert found["difference_low"] == pytest.approx(gaps.mean() - half, abs=0.01)
    assert found["difference_high"] == pytest.approx(gaps.mean() + half, abs=0.01)
    assert found["p_bootstrap"] == pytest.approx(found["p_mcnemar"], abs=0.05)
    again = compare(classifier(first), classifier(first, 7))
    assert again["p_mcnemar"] == again["p_bootstrap"] == 1
    assert again["difference"] == 0


def test_other_data_is_refused_with_what_is_shared():
    right = np.ones(6, bool)
    ours = classifier(right)
    shuffled = classifier(right, example=np.arange(6, dtype=np.uint64)[::-1])
    with pytest.raises(UserError, match="in another order"):
        compare(ours, shuffled)
    other = classifier(right, example=np.arange(4, 10, dtype=np.uint64))
    with pytest.raises(UserError, match="6 examples, 2 of them shared"):
        compare(ours, other)
    with pytest.raises(UserError, match="classes"):
        compare(ours, classifier(right, classes=("x", "y", "z")))
    tags = Predictions(MultiLabel(("a", "b", "c")), ours.observed, ours.example, ours.about)
    with pytest.raises(UserError, match="multilabel"):
        compare(ours, tags)


def test_a_regression_is_compared_by_its_own_metric_without_mcnemar():
    generator = np.random.default_rng(0)
    label = generator.normal(size=80).astype(np.float32)

    def model(noise):
        predicted = label + noise * generator.normal(size=80).astype(np.float32)
        observed = {"predicted": predicted, "label": label, "loss": (predicted - label) ** 2}
        return Predictions(Regression(), observed, np.arange(80, dtype=np.uint64), {})

    found = compare(model(0.1), model(1.0), resamples=300)
    assert found["metric"] == "rmse" and found["better"] == "min"
    assert found["difference_high"] < 0
    assert "p_mcnemar" not in found


@given(st.binary(max_size=9), st.text(max_size=9), st.integers(0, 9))
def test_an_example_is_known_by_its_content_and_not_by_the_order_of_its_columns(data, text, label):
    image = np.frombuffer(data, np.uint8)
    one = {"image": image, "text": text, "label": label, "raw": data}
    assert identity(one) == identity(dict(reversed(one.items())))
    for key, other in (
        ("image", np.append(image, np.uint8(1))),
        ("text", text + "x"),
        ("label", label + 1),
        ("raw", data + b"x"),
    ):
        assert identity(one) != identity({**one, key: other})


def test_the_examples_of_a_run_do_not_depend_on_how_a_model_sees_them(short_run):
    evaluator = open_run(short_run)
    found = predict_split(evaluator, "test")
    assert len(found.example) == 50
    assert len(np.unique(found.example)) == 50
    raw = [identity(evaluator.examples("test")[i]) for i in range(50)]
    assert found.example.tolist() == raw
    assert found.scores()["n_scored"] == 50

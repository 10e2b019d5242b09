"""Hugging Face datasets saved to disk, and the errors about datasets that do not exist."""

import sys

import numpy as np
import pytest
from PIL import Image

from finetune_jax.data.sources import Options, open_source
from finetune_jax.errors import UserError


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'finetune_jax\[hf-data\]'"):
        open_source("hf:owner/name")


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets", reason="the datasets library is an extra")


def test_images_and_class_labels_read_as_elsewhere(datasets, tmp_path):
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])}
    )
    pictures = [Image.fromarray(np.full((4, 5), 20 * i, np.uint8)) for i in range(10)]
    rows = {"img": pictures, "label": [int(i > 4) for i in range(10)]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select([1, 9])}).save_to_disk(
        tmp_path / "d"
    )
    source = open_source(f"hf:{tmp_path / 'd'}", Options(image_column="img"))
    assert source.class_names == ("dark", "light")
    assert source.splits == {"train": 10, "test": 2}
    examples = source.read("train[6:]+test[:1]")
    assert [examples[i]["label"] for i in range(5)] == [1, 1, 1, 1, 0]
    assert examples[4]["image"].shape == (4, 5, 3)
    assert (examples[4]["image"] == 20).all()
    assert source.origin and source.identity["files"] >= 1
    with pytest.raises(UserError, match="Did you mean 'img'"):
        open_source(f"hf:{tmp_path / 'd'}", Options(image_column="imgs"))


def test_texts_with_names_as_labels_and_one_split(datasets, tmp_path):
    rows = {"text": [f"t{i}" for i in range(20)], "label": ["no", "yes"] * 10}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d")
    source = open_source(f"hf:{tmp_path / 'd'}")
    assert source.class_names == ("no", "yes")
    assert source.splits == {"train": 16, "validation": 2, "test": 2}
    seen = [source.read(s)[i] for s in source.splits for i in range(source.splits[s])]
    assert sorted(row["text"] for row in seen) == sorted(rows["text"])
    assert all(row["label"] == int(row["text"][1:]) % 2 for row in seen)


def test_labels_are_read_strictly(datasets, tmp_path):
    def opened(labels, options=None, **features):
        rows = {"text": [f"t{i}" for i in range(len(labels))], "label": labels}
        kind = datasets.Features({"text": datasets.Value("string"), **features})
        made = datasets.Dataset.from_dict(rows, features=kind if features else None)
        datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "d", max_shard_size="1GB")
        source = open_source(f"hf:{tmp_path / 'd'}", options or Options())
        seen = [source.read(s)[i] for s in source.splits for i in range(source.splits[s])]
        labels = {row["text"]: row["label"] for row in seen}
        return source.class_names, [labels[f"t{i}"] for i in range(len(labels))]

    assert opened([["b", "a"], [], ["b"]]) == (("a", "b"), [[1, 0], [], [1]])
    assert opened([1.5, 2.0, 3.0]) == ((), [1.5, 2.0, 3.0])
    with pytest.raises(UserError, match="split 'train', row 1, column 'label': the label 'None'"):
        opened(["a", None, "b"])
    with pytest.raises(UserError, match="row 2, column 'label': the label 'nan' stands for a miss"):
        opened([1.0, 2.0, float("nan")])
    with pytest.raises(
        UserError, match="row 0, column 'label': the label is a list.*label_columns"
    ):
        opened([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(UserError, match="row 0, column 'label': expected a number.*found '2,5'"):
        opened(["2,5", "3,5"], Options(task_labels="number"))
    with pytest.raises(UserError, match="row 1, column 'label': the label is missing"):
        opened([0, None], label=datasets.ClassLabel(names=["a", "b"]))


def test_labels_in_columns(datasets, tmp_path):
    rows = {
        "text": [f"t{i}" for i in range(20)],
        "label": ["x"] * 20,
        "dog": [float(i % 2) for i in range(20)],
        "cat": [bool((i + 1) % 2) for i in range(20)],
    }
    path = tmp_path / "d"
    datasets.Dataset.from_dict(rows).save_to_disk(path)
    wanted = Options(label_columns=("dog", "cat"), task_labels="class")
    source = open_source(f"hf:{path}", wanted)
    assert source.class_names == ("dog", "cat") and "label" in source.columns
    assert source.splits == {"train": 16, "validation": 2, "test": 2}
    seen = [source.read(s)[i] for s in source.splits for i in range(source.splits[s])]
    assert all(row["label"] == (int(row["text"][1:]) + 1) % 2 for row in seen)
    datasets.Dataset.from_dict(rows | {"dog": [None] + [1] * 19}).save_to_disk(tmp_path / "e")
    source = open_source(f"hf:{tmp_path / 'e'}", Options(label_columns=("dog", "cat")))
    assert source.unknown == 1
    seen = [source.read(s)[i] for s in source.splits for i in range(source.splits[s])]
    labels = {row["text"]: row["label"] for row in seen}
    np.testing.assert_array_equal(labels["t0"], [np.nan, 1])
    np.testing.assert_array_equal(labels["t3"], [1, 0])


def test_pairs_of_images(datasets, tmp_path):
    features = datasets.Features(
        {"l": datasets.Image(), "r, mirrored": datasets.Image(), "label": datasets.Value("float")}
    )
    one, other = (
        [Image.fromarray(np.full((4, 5 + i), start + i, np.uint8)) for i in range(10)]
        for start in (0, 100)
    )
    rows = {"l": one, "r, mirrored": other, "label": [i / 10 for i in range(10)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    # A column whose own name has a comma is one column.
    single = open_source(f"hf:{tmp_path / 'd'}", Options(image_column="r, mirrored"))
    assert not single.pairs
    assert (single.read("train")[0]["image"] >= 100).all()
    whole = datasets.load_from_disk(tmp_path / "d").rename_column("r, mirrored", "r")
    whole.save_to_disk(tmp_path / "e")
    source = open_source(f"hf:{tmp_path / 'e'}", Options(image_column="l,r"))
    assert source.pairs
    row = source.read("train")[0]
    number = round(10 * row["label"])
    assert (row["image"] == number).all() and (row["image2"] == 100 + number).all()


def test_what_is_not_here_is_not_downloaded(datasets, tmp_path):
    with pytest.raises(UserError, match="data.prepare=True downloads it"):
        open_source("hf:owner/no-such-dataset", Options(data_dir=str(tmp_path)))

"""Examples that are in two splits are counted and reported."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from finetune_jax.config import default
from finetune_jax.data import overlap
from finetune_jax.data.batches import cached
from finetune_jax.data.class_map import open_configured
from finetune_jax.data.examples import EncodedExamples
from finetune_jax.data.listing import TableExamples
from finetune_jax.data.overlap import contradictions, shared_examples, shared_parts
from finetune_jax.setup import open_setup
from finetune_jax.training.data_remarks import data_remarks


@pytest.mark.parametrize(
    ("expressions", "found"),
    [
        ({"train": "train[:80%]", "validation": "train[70%:]"}, [("train", "validation", 10)]),
        ({"train": "train[:80%]", "validation": "train[80%:]", "test": "test"}, []),
        ({"train": "train", "validation": "", "test": "train[:5]"}, [("train", "test", 5)]),
        ({"train": "train+test", "test": "test"}, [("train", "test", 20)]),
        ({"train": "train[:50]+train[30:60]+train[55:]"}, [("train", "train", 25)]),
        ({"train": "train[:10]", "validation": "train[-95:]", "test": "train[8:12]+test"},
         [("train", "validation", 5), ("train", "test", 2), ("validation", "test", 4)]),
    ],
)  # fmt: skip
def test_parts_that_two_expressions_share(expressions, found):
    assert list(shared_parts(expressions, {"train": 100, "test": 20})) == found


def config_of(tmp_path, cells, column="text"):
    for split, texts in cells.items():
        rows = "".join(f"{text},{'ab'[i % 2]}\n" for i, text in enumerate(texts))
        (tmp_path / f"{split}.csv").write_text(f"{column},label\n{rows}")
    config = default()
    config.data.source = "csv:" + ",".join(f"{s}={tmp_path}/{s}.csv" for s in cells)
    config.data.image_column = column if column == "file" else "image"
    return config


def test_texts_of_two_splits(tmp_path):
    cells = {"train": ["w", "x", "y"], "validation": ["v", "u"], "test": ["y", "z", "w", "u"]}
    source = open_configured(config_of(tmp_path, cells).data)
    opened = {split: source.read(split) for split in cells}
    found = [(a, b, n) for a, b, n, _ in shared_examples(opened, opened, (), ("text",))]
    assert found == [("train", "test", 2), ("validation", "test", 1)]
    assert list(shared_examples(opened, opened, (), ("other",))) == []


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_of_two_splits_by_path_or_by_content(tmp_path, in_memory):
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    Image.fromarray(np.full((8, 8, 3), 40, np.uint8)).save(tmp_path / "copy_of_1.png")
    cells = {"train": ["0.png", "1.png", "2.png"], "test": ["3.png", "2.png", "copy_of_1.png"]}
    config = config_of(tmp_path, cells, "file")
    config.data.validation, config.data.image_size = "", 8
    config.data.class_order = ("b", "a")
    setup = open_setup(config)
    opened = {split: setup.source.read(split) for split in cells}
    encoded = {s: cached(x, setup.encode, 2**30 * in_memory) for s, x in opened.items()}
    (line,) = data_remarks(setup, opened, encoded)
    assert line.startswith("data: 2 of 3 examples of test are also in train, with equal inputs, ")
    assert line.endswith(("/2.png", "/copy_of_1.png"))


def test_without_reading_files_paths_are_compared(tmp_path, monkeypatch):
    rows = {"train": ["a.png", "b.png"], "test": ["b.png", "copy_of_a.png"]}
    for name in ("a.png", "copy_of_a.png", "b.png"):
        (tmp_path / name).write_bytes(b"b" if name == "b.png" else b"aaa")
    opened = {
        split: TableExamples({"label": [0, 1]}, {"image": [str(tmp_path / x) for x in names]})
        for split, names in rows.items()
    }
    for limit, found in ((2**20, 2), (0, 1)):
        monkeypatch.setattr(overlap, "_MOST_READ", limit)
        ((*_, count, _),) = shared_examples(opened, opened, (), ("image",))
        assert count == found


def test_overlapping_expressions_are_reported_once():
    config = default()
    config.data.train, config.data.validation, config.data.test = "train[:8]", "train[6:]", "test"
    images = np.arange(12, dtype=np.uint8)[:, None]
    encoded = {
        split: EncodedExamples({"image": rows})
        for split, rows in (
            ("train", images[:8]), ("validation", images[6:10]), ("test", images[[11, 9]]),
        )
    }  # fmt: skip
    setup = SimpleNamespace(
        config=config,
        source=SimpleNamespace(name="x", splits={"train": 10, "test": 2}, unknown=3),
        preprocess=SimpleNamespace(abstract=lambda count: {"image": None}, columns=("image",)),
    )
    assert list(data_remarks(setup, encoded, encoded)) == [
        "data.train='train[:8]' and data.validation='train[6:]' have 2 examples in common",
        "data: 1 of 2 examples of test are also in validation, with equal inputs, the first of "
        "them example 1",
        "x: 3 labels are unknown; the loss and the scores leave them out",
    ]


def test_equal_inputs_with_other_labels():
    x = np.array([[1, 2], [3, 4], [1, 2], [1, 2], [3, 4]], np.int32)
    found = EncodedExamples({"x": x, "label": np.array([0, 1, 1, 0, 1], np.int32)})
    assert contradictions(found, ("x",)) == [2]
    assert contradictions(EncodedExamples({"x": x}), ("x",)) == []
    values = EncodedExamples({"x": x, "label": np.arange(5, dtype=np.float32)})
    assert contradictions(values, ("x",)) == []


def test_what_a_run_reports_about_labels_and_ranges(tmp_path):
    (tmp_path / "t.csv").write_text("file,label,split\n" + "".join(
        f"{i % 3}.png,{'ab'[i % 2]},train\n" for i in range(6)
    ))  # fmt: skip
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    config = default()
    config.data.source, config.data.image_column = f"csv:{tmp_path}/t.csv", "file"
    config.data.train, config.data.validation, config.data.test = "train[:9]", "", ""
    config.model.name, config.data.image_size = "resnet8_cifar", 8
    setup = open_setup(config)
    opened = {"train": setup.source.read("train[:9]")}
    encoded = {"train": cached(opened["train"], setup.encode, 2**20)}
    ranges, labels = data_remarks(setup, opened, encoded)
    assert ranges == (
        "data.train: 'train[:9]' asks for more examples than the 6 of 'train'; the run takes those "
        "that there are"
    )
    assert labels.startswith(
        "data: 3 examples of train have the inputs of another example and another label, the first"
    )

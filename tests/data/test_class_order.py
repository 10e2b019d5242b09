"""The order of classes: numbers by value in every source, and an order that a user gives."""

import numpy as np
import pytest
from PIL import Image

from finetune_jax.config import default
from finetune_jax.data.class_map import open_configured
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup


def config_of(folder, names, task="classification", order=(), csv=False):
    for name in names:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        for i in range(10):
            Image.fromarray(np.full((4, 4, 3), 20 * i, np.uint8)).save(place / f"{name}_{i}.png")
    config = default()
    config.task.name, config.data.class_order = task, order
    config.data.source = f"folder:{folder}"
    config.data.train, config.data.validation, config.data.test = "train", "validation", "test"
    config.data.image_size = 16
    if csv:
        lines = [f"{folder}/{n}/{n}_{i}.png,{n}" for n in names for i in range(10)]
        (folder / "t.csv").write_text("image,label\n" + "\n".join(lines) + "\n")
        config.data.source = f"csv:{folder}/t.csv"
        config.data.label_kind = "class"
    return config


@pytest.mark.parametrize("csv", [False, True])
def test_numbers_are_sorted_by_value_in_every_source(tmp_path, csv):
    config = config_of(tmp_path, ["10", "9", "2", "1"], csv=csv)
    assert open_configured(config.data).class_names == ("1", "2", "9", "10")


@pytest.mark.parametrize("csv", [False, True])
def test_a_given_order_numbers_the_classes(tmp_path, csv):
    names = ["low", "medium", "high"]
    config = config_of(tmp_path, names, "ordinal", tuple(names), csv)
    setup = open_setup(config)
    assert setup.task.class_names == tuple(names)
    examples = setup.source.read("train")
    for i in range(len(examples)):
        example = examples[i]
        if "path" in example:
            assert names[example["label"]] in str(example["path"])
        assert setup.encode(example)["label"] == example["label"]
    counts = np.bincount([examples[i]["label"] for i in range(len(examples))])
    assert len(counts) == 3 and counts.min() > 0


def test_an_ordinal_task_asks_for_the_order_of_names(tmp_path):
    config = config_of(tmp_path, ["low", "medium", "high"], "ordinal")
    with pytest.raises(UserError, match="set data.class_order=.'high', 'low', 'medium'. in the"):
        open_setup(config)
    open_setup(config_of(tmp_path / "x", ["1", "2", "10"], "ordinal"))


@pytest.mark.parametrize("order", [("low", "high"), ("low", "high", "high"), ("low", "hi", "mid")])
def test_another_set_of_names_is_refused(tmp_path, order):
    config = config_of(tmp_path, ["low", "mid", "high"], order=order)
    with pytest.raises(UserError, match="data.class_order: expected each class once"):
        open_configured(config.data)


def test_regression_reads_the_numbers_that_folders_are_called(tmp_path):
    setup = open_setup(config_of(tmp_path, ["10", "2.5", "1"], "regression"))
    examples = setup.source.read("train")
    found = {float(setup.encode(examples[i])["label"]) for i in range(len(examples))}
    assert found == {1.0, 2.5, 10.0}
    with pytest.raises(UserError, match="regression needs numbers.*such as 'a'"):
        open_setup(config_of(tmp_path / "x", ["a", "b"], "regression"))


def test_an_order_in_one_text_is_answered_with_the_flag(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,low\nb,high\n")
    config = default()
    config.data.source = f"csv:{tmp_path / 't.csv'}"
    config.data.class_order = ("low,high",)
    with pytest.raises(UserError, match=r"""class_order=\"\('low', 'high'\)\""""):
        open_configured(config.data)

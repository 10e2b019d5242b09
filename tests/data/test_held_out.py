"""Splits as data has them: validation is held out of training, and a missing test is not scored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune_jax.config import default
from finetune_jax.data.class_map import open_configured
from finetune_jax.data.examples import labels_of
from finetune_jax.data.held_out import require_splits
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup


def pictures(root: Path, **counts: int) -> Path:
    """Images of one class each: ``train_cat=3`` is three images in ``train/cat``."""
    for number, (place, count) in enumerate(counts.items()):
        folder = root.joinpath(*place.split("_"))
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = np.full((4, 4, 3), 40 * number + index, np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def config_of(source: str, **data):
    config = default()
    config.data.source = source
    config.data.update(data)
    return config


def paths(source, split):
    examples = source.read(split)
    return [examples[i]["path"] for i in range(len(examples))]


def test_validation_is_a_tenth_of_each_class_of_training(tmp_path):
    root = pictures(tmp_path, train_cat=40, train_dog=20, train_emu=1, test_cat=2)
    source = open_configured(config_of(f"folder:{root}").data)
    assert source.splits == {"train": 55, "validation": 6, "test": 2}
    assert Counter(labels_of(source.read("validation"))) == {0: 4, 1: 2}
    train, held = paths(source, "train"), paths(source, "validation")
    assert len({*train}) == 55
    assert {*train}.isdisjoint(held)
    assert (source.held_out, source.missing) == (6, ())
    assert paths(source, "validation+train[:3]") == held + train[:3]
    assert paths(source, "test") == paths(open_configured(config_of(f"folder:{root}").data), "test")


def test_the_draw_follows_the_seed_and_is_part_of_the_identity(tmp_path):
    root = pictures(tmp_path, train_cat=30, train_dog=30)
    first, again, other = (
        open_configured(config_of(f"folder:{root}", split_seed=seed).data) for seed in (0, 0, 1)
    )
    assert paths(first, "validation") == paths(again, "validation")
    assert paths(first, "validation") != paths(other, "validation")
    whole = open_configured(config_of(f"folder:{root}", validation="").data)
    assert whole.splits == {"train": 60}
    assert len({str(s.identity) for s in (first, other, whole)}) == 3
    assert first.identity == again.identity


@pytest.mark.parametrize("names", [("train", "val"), ("train", "valid", "test"), ("train",)])
def test_what_there_is_is_taken_and_a_missing_test_split_is_empty(tmp_path, names):
    counts = {f"{name}_{kind}": 10 for name in names for kind in ("cat", "dog")}
    config = config_of(f"folder:{pictures(tmp_path, **counts)}")
    config.model.name = "resnet8_cifar"
    setup = open_setup(config)
    assert setup.config.data.test == ("test" if "test" in names else "")
    assert setup.source.missing == (() if "test" in names else ("test",))
    assert setup.examples("validation") == (2 if len(names) == 1 else 20)
    assert setup.examples("train") == (18 if len(names) == 1 else 20)
    require_splits(setup.source, setup.config.data)


def test_two_tables_or_their_folder_have_a_validation_split(tmp_path):
    rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40))
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    for text in (f"{tmp_path}/train.csv,{tmp_path}/test.csv", str(tmp_path)):
        source = open_configured(config_of(f"csv:{text}").data)
        assert source.splits == {"train": 36, "validation": 4, "test": 40}
        assert Counter(labels_of(source.read("validation"))) == {0: 2, 1: 2}
    (tmp_path / "test.csv").unlink()
    (tmp_path / "train.csv").rename(tmp_path / "all.csv")
    assert open_configured(config_of(f"csv:{tmp_path}").data).splits["train"] == 32
    (tmp_path / "other.csv").write_text("text,label\n")
    with pytest.raises(UserError, match="found the tables: all.csv, other.csv"):
        open_configured(config_of(f"csv:{tmp_path}").data)


def test_a_missing_training_split_names_the_flags_that_train_on_another(tmp_path):
    root = pictures(tmp_path, val_cat=10, val_dog=10)
    config = config_of(f"folder:{root}")
    source = open_configured(config.data)
    assert source.missing == ("test",)
    with pytest.raises(UserError) as error:
        require_splits(source, config.data)
    flags = [
        word.removeprefix("--config.").replace("'", "")
        for word in str(error.value).split()
        if word.startswith("--config.")
    ]
    assert [flag.partition("=")[0][5:] for flag in flags] == ["train", "validation", "test"]
    config.update_from_flattened_dict(dict(flag.split("=") for flag in flags))
    require_splits(open_configured(config.data), config.data)


def test_one_level_too_high_names_the_folder_that_is_meant(tmp_path, capsys):
    root = pictures(tmp_path / "x", flowers_rose=3, flowers_daisy=3, hym_ant=3, hym_bee=3)
    open_configured(config_of(f"folder:{root}").data)
    said = capsys.readouterr().err
    assert "2 folders, 'flowers', 'hym'" in said
    assert f"did you mean folder:{root}/flowers?" in said
    other = pictures(tmp_path / "y", a_train_rose=3, a_val_rose=3, b_train_ant=3)
    with pytest.raises(UserError, match=f"did you mean folder:{other}/a"):
        open_configured(config_of(f"folder:{other}").data)

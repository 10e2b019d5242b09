"""Folders of images by class, and bad images among them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from finetune_jax.data.sources import Options, open_source
from finetune_jax.data.splits import hold_out
from finetune_jax.errors import UserError


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


def fill(root, counts):
    for where, count in counts.items():
        for i in range(count):
            picture(root / where / f"{i:03}.png", i)


def labels(source, split):
    examples = source.read(split)
    return [examples[i]["label"] for i in range(len(examples))]


def test_splits_by_folder_with_sorted_class_names(tmp_path):
    fill(tmp_path, {"train/cat": 3, "train/ant": 2, "val/ant": 1, "test/cat/deep": 2})
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("ant", "cat")
    assert source.splits == {"train": 5, "validation": 1, "test": 2}
    assert sorted(labels(source, "train")) == [0, 0, 1, 1, 1]
    assert labels(source, "test") == [1, 1]
    example = source.read("validation")[0]
    assert example["image"].shape == (4, 4, 3)
    assert example["path"].endswith("val/ant/000.png")
    assert set(example) == set(source.columns)


def test_one_folder_of_classes_is_split_the_same_way_for_ever(tmp_path):
    fill(tmp_path, {"a": 50, "b": 30, "c": 20})
    source = open_source(f"folder:{tmp_path}")
    assert source.splits == {"train": 80, "validation": 10, "test": 10}
    assert np.bincount(labels(source, "train")).tolist() == [40, 24, 16]
    assert np.bincount(labels(source, "test")).tolist() == [5, 3, 2]
    seen = [source.read(s)[i]["path"] for s in source.splits for i in range(source.splits[s])]
    assert len(set(seen)) == 100
    again = open_source(f"folder:{tmp_path}")
    assert [again.read("test")[i]["path"] for i in range(10)] == seen[-10:]
    other = open_source(f"folder:{tmp_path}", Options(split_seed=1))
    assert [other.read("test")[i]["path"] for i in range(10)] != seen[-10:]
    # A slice is a sample of all classes, and does not hold the first class alone.
    assert set(labels(source, "train[:30%]")) == {0, 1, 2}


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"bus": 2, "train": 2})
    assert open_source(f"folder:{tmp_path}").class_names == ("bus", "train")


def test_holding_out_is_stratified_to_one_example():
    sizes = {0: 3, 1: 47, 2: 101, 3: 9}
    parts = hold_out([c for c, n in sizes.items() for _ in range(n)], seed=5)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(160))
    known = np.array([c for c, n in sizes.items() for _ in range(n)])
    for part, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        for c, n in sizes.items():
            assert abs((known[parts[part]] == c).sum() - share * n) < 2


def test_files_are_listed_without_being_read(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(20):
        (tmp_path / "a" / f"{i}.jpg").write_text("no image")
    source = open_source(f"folder:{tmp_path}")
    assert source.splits["train"] == 16
    with pytest.raises(UserError, match=r"a/\d+\.jpg: not an image"):
        source.read("train")[0]


def test_origin_changes_with_list_size_and_time(tmp_path):
    fill(tmp_path, {"a": 10, "b": 10})
    origins = [open_source(f"folder:{tmp_path}").origin]
    assert open_source(f"folder:{tmp_path}").origin == origins[0]
    os.utime(tmp_path / "a" / "000.png", (1, 1))
    origins.append(open_source(f"folder:{tmp_path}").origin)
    picture(tmp_path / "b" / "new.png")
    origins.append(open_source(f"folder:{tmp_path}").origin)
    origins.append(open_source(f"folder:{tmp_path}", Options(split_seed=3)).origin)
    assert len(set(origins)) == 4


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no images"),
        ({"train/a": 1, "extra/a": 1}, "other folders: extra"),
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, "are both the split 'validation'"),
    ],
)
def test_a_folder_that_makes_no_sense_is_refused(tmp_path, counts, message):
    fill(tmp_path, counts)
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}")


def test_links_to_folders_are_followed_and_hidden_folders_are_not_read(tmp_path):
    fill(tmp_path / "far", {"more": 3})
    fill(tmp_path / "photos", {"a": 2, "b": 2, "a/.ipynb_checkpoints": 5})
    (tmp_path / "photos" / "a" / "linked").symlink_to(tmp_path / "far" / "more")
    (tmp_path / "photos" / "a" / "circle").symlink_to(tmp_path / "photos" / "a")
    source = open_source(f"folder:{tmp_path / 'photos'}")
    assert sum(source.splits.values()) == 2 + 3 + 2


def test_a_class_whose_files_cannot_be_read_does_not_vanish(tmp_path):
    fill(tmp_path, {"train/a": 2, "test/a": 1})
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(UserError, match="class folder .*train/b holds no files"):
        open_source(f"folder:{tmp_path}")
    (tmp_path / "train" / "b" / "photo.raw").write_text("x")
    with pytest.raises(UserError, match=r"holds files of other kinds \(\.raw\), and no image"):
        open_source(f"folder:{tmp_path}")


def test_one_level_too_high_is_reported(tmp_path, capsys):
    fill(tmp_path / "photos", {"photos/train/a": 2, "photos/train/b": 2})
    with pytest.raises(UserError, match=f"did you mean folder:{tmp_path}/photos/photos"):
        open_source(f"folder:{tmp_path / 'photos'}")
    fill(tmp_path / "many", {"all/2020": 2, "all/2021": 2})
    assert open_source(f"folder:{tmp_path / 'many'}").class_names == ("all",)
    assert f"did you mean folder:{tmp_path}/many/all" in capsys.readouterr().err
    fill(tmp_path / "one", {"a": 2})
    assert open_source(f"folder:{tmp_path / 'one'}").class_names == ("a",)


def test_a_flat_test_folder_is_reported_and_left_out(tmp_path, capsys):
    fill(tmp_path, {"train/a": 2, "train/b": 2, "test": 3})
    source = open_source(f"folder:{tmp_path}")
    assert len(source.read("train")) == 4 and "test" not in source.splits
    told = capsys.readouterr().err
    assert "test holds 3 images that are in no folder of a class" in told
    assert "this split is left out" in told and "3 files" in told
    with pytest.raises(UserError, match="unknown split 'test'"):
        source.read("test[:50%]")


def test_no_such_folder(tmp_path):
    fill(tmp_path, {"animals/a": 1})
    with pytest.raises(UserError, match="holds no folder 'animal'. Did you mean 'animals'"):
        open_source(f"folder:{tmp_path}/animal/train")
    for name, cure in (
        ("a.zip", "is an archive; unpack it"),
        ("a.csv", "is read by csv:"),
        ("a.png", "is a file; expected a folder"),
    ):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=cure):
            open_source(f"folder:{tmp_path / name}")


def test_archives_in_place_of_images_are_named(tmp_path):
    (tmp_path / "train-000.tar").write_bytes(b"x")
    with pytest.raises(UserError, match="no images but archives, such as train-000.tar"):
        open_source(f"folder:{tmp_path}")


def test_splits_without_folders_of_classes_are_no_classes(tmp_path):
    fill(tmp_path, {"train": 2, "validation": 2})
    with pytest.raises(UserError, match="the splits train, validation, which have no folders of"):
        open_source(f"folder:{tmp_path}")
    (tmp_path / "train" / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"train/metadata.jsonl may have the labels: csv:train="):
        open_source(f"folder:{tmp_path}")
    fill(tmp_path, {"bus": 2})
    assert open_source(f"folder:{tmp_path}").class_names == ("bus", "train", "validation")


@pytest.mark.parametrize("names", [("images", "labels"), ("Images", "masks"), ("imgs", "label")])
@pytest.mark.parametrize("split", ["", "train/"])
def test_images_beside_their_labels_are_no_classes(tmp_path, names, split):
    fill(tmp_path, {f"{split}{name}": 2 for name in names})
    with pytest.raises(UserError, match=f"{names[0]}/ and {names[1]}/, which are no classes"):
        open_source(f"folder:{tmp_path}")


def test_a_link_to_a_folder_above_a_class_brings_no_files_of_other_classes(tmp_path):
    fill(tmp_path, {"train/a": 2, "train/b": 3, "elsewhere/more": 4})
    (tmp_path / "train" / "a" / "all").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "b" / "more").symlink_to(tmp_path / "elsewhere")
    source = open_source(f"folder:{tmp_path}/train")
    rows = [label for split, n in source.splits.items() if n for label in labels(source, split)]
    assert np.bincount(rows).tolist() == [2, 7]


def test_files_that_are_no_images_by_name_are_reported(tmp_path, capsys):
    fill(tmp_path, {"a": 2})
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".hidden").write_text("x")
    open_source(f"folder:{tmp_path}")
    assert "1 files are not images by name" in capsys.readouterr().err


def test_bad_images_are_an_error_or_left_out_and_reported(tmp_path, capsys):
    fill(tmp_path, {"train/a": 3, "train/b": 2})
    (tmp_path / "train" / "b" / "text.jpg").write_text("no image")
    (tmp_path / "train" / "b" / "empty.png").touch()
    strict = open_source(f"folder:{tmp_path}").read("train")
    with pytest.raises(UserError, match="train/b/"):
        [strict[i] for i in range(len(strict))]
    capsys.readouterr()
    source = open_source(f"folder:{tmp_path}", Options(on_bad_image="skip"))
    examples = source.read("train")
    told = capsys.readouterr()
    # Standard output stays empty, because a command may print one JSON object to it.
    assert told.out == ""
    out = told.err
    assert "2 of 7 images left out" in out
    assert "text.jpg: not an image" in out and "empty.png: the file is empty" in out
    assert len(examples) == 5 and len(examples.left_out) == 2
    assert sorted(examples[i]["label"] for i in range(5)) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_missing_files_are_an_error_or_left_out(tmp_path, kind, capsys):
    fill(tmp_path, {"a": 10, "b": 10})
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("?/*"))
    name = f"folder:{tmp_path}"
    if kind == "folder":
        (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    else:
        rows = [f"{path},{path[0]}" for path in [*names, "a/gone.png"]]
        (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]) + "\n")
        name = f"csv:{tmp_path}/t.csv"
    with pytest.raises(UserError, match="a/gone.png: cannot be read: No such file"):
        open_source(name)
    source = open_source(name, Options(on_bad_image="skip"))
    assert sum(source.splits.values()) == 21
    examples = source.read("train+validation+test")
    assert len(examples) == 20
    assert "a/gone.png: no such image file" in capsys.readouterr().err
    assert source.identity["files"] == 20


def test_a_class_of_files_that_need_a_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune_jax.data.images.SUFFIXES", frozenset({".png"}))
    fill(tmp_path, {"train/a": 1})
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "b" / "x.HEIC").write_bytes(b"....ftypheic")
    monkeypatch.setattr("finetune_jax.data.source_folder.SUFFIXES", frozenset({".png"}))
    with pytest.raises(UserError, match=r".heic.*pip install 'finetune_jax\[heif\]'"):
        open_source(f"folder:{tmp_path}")


def test_a_split_without_one_good_image_is_refused(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "x.png").touch()
    with pytest.raises(UserError, match="none of 1 images can be read"):
        open_source(f"folder:{tmp_path}", Options(on_bad_image="skip")).read("train")


def test_a_run_keeps_the_list_of_what_it_left_out(tmp_path, small_config):
    from finetune_jax.cli import load_config
    from finetune_jax.setup import open_setup
    from finetune_jax.training.loop import train

    fill(tmp_path / "data", {"train/a": 12, "train/b": 12, "val/a": 9, "val/b": 8})
    (tmp_path / "data" / "train" / "b" / "text.jpg").write_text("no image")
    config = load_config(str(small_config))
    config.data.source, config.data.on_bad_image = f"folder:{tmp_path / 'data'}", "skip"
    config.data.train, config.data.validation, config.data.test = "train", "validation", ""
    config.train.steps = 2
    result = train(open_setup(config), tmp_path / "run")
    assert result["left_out"] == {"train": 1}
    kept = json.loads((tmp_path / "run" / "left_out.json").read_text())
    (line,) = kept["train"]
    assert "text.jpg: not an image in a format that is read here: BMP, GIF, JPEG" in line


def test_training_and_testing_are_splits(tmp_path):
    fill(tmp_path, {"Training/a": 2, "Testing/a": 1})
    assert open_source(f"folder:{tmp_path}").splits == {"train": 2, "test": 1}
    fill(tmp_path, {"others/a": 1})
    with pytest.raises(UserError, match="other folders: others; .* splits called train, training"):
        open_source(f"folder:{tmp_path}")


def test_images_without_folders_of_classes_are_named(tmp_path):
    fill(tmp_path, {".": 3})
    with pytest.raises(UserError, match="3 images that are in no folder of a class, such as"):
        open_source(f"folder:{tmp_path}")


def test_folders_that_differ_in_case_are_reported(tmp_path, capsys):
    fill(tmp_path, {"Cat": 10, "cat": 10})
    assert open_source(f"folder:{tmp_path}").class_names == ("Cat", "cat")
    assert "1 classes are written in several ways, such as 'Cat', 'cat'" in capsys.readouterr().err


def test_folders_of_systems_are_no_classes(tmp_path):
    fill(tmp_path, {"train/a": 2, "train/b": 2, "train/@eaDir": 1, "train/a/@eaDir": 1})
    fill(tmp_path, {"__MACOSX/x": 1})
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("a", "b") and source.splits == {"train": 4}


@pytest.mark.parametrize(
    ("files", "message"),
    [(["a/1.npy", "b/2.npy"], r"holds no images but 2 files of \.npy"),
     (["train/data-00000-of-00001.arrow", "dataset_dict.json"], "data.source=hf:.* reads")],
)  # fmt: skip
def test_what_a_folder_without_images_holds_is_named(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}")


def test_a_path_without_a_source_is_answered_with_its_source(tmp_path):
    with pytest.raises(UserError, match=f"Did you mean 'folder:{tmp_path}'"):
        open_source(str(tmp_path))
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(UserError, match=f"Did you mean 'csv:{tmp_path}/t.csv'"):
        open_source(f"{tmp_path}/t.csv")

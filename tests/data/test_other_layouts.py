"""Folders and tables in the layouts of published data sets: read right, or refused with a cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from finetune_jax.data.classes import class_name
from finetune_jax.data.examples import EncodedExamples
from finetune_jax.data.images import decode, path_hint
from finetune_jax.data.labels import encode_labels
from finetune_jax.data.overlap import contradictions
from finetune_jax.data.sources import Options, open_source
from finetune_jax.errors import UserError


def fill(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def table(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"csv:{path}"


def test_splits_are_known_by_other_names_and_below_a_folder_of_the_same_name(tmp_path):
    names = ("a/1.png", "b/1.png")
    plain = fill(tmp_path / "x", *(f"{s}_set/{n}" for s in ("Training", "test") for n in names))
    inner = fill(tmp_path / "y", *(f"{s}/{s}/{n}" for s in ("train", "val") for n in names))
    found = open_source(f"folder:{plain}")
    assert (found.class_names, dict(found.splits)) == (("a", "b"), {"train": 2, "test": 2})
    found = open_source(f"folder:{inner}")
    assert (found.class_names, dict(found.splits)) == (("a", "b"), {"train": 2, "validation": 2})


def test_splits_below_classes_are_refused_with_the_order_that_is_expected(tmp_path):
    root = fill(tmp_path, *(f"{c}/{s}/1.png" for c in "ab" for s in ("train", "val")))
    with pytest.raises(UserError, match=f"move {root}/CLASS/SPLIT to {root}/SPLIT/CLASS"):
        open_source(f"folder:{root}")


def test_folds_are_said_to_be_the_classes(tmp_path, capsys):
    root = fill(tmp_path, *(f"fold{n}/{c}/{n}.png" for n in range(3) for c in "ab"))
    assert open_source(f"folder:{root}").class_names == ("fold0", "fold1", "fold2")
    said = capsys.readouterr().err
    assert "The classes here are fold0, fold1" in said and "a table with the columns" in said


def test_masks_beside_images_are_counted(tmp_path, capsys):
    root = fill(tmp_path, *(f"{c}/{c} ({i}){m}.png" for c in "ab" for i in range(3)
                            for m in ("", "_mask", "_mask_1")))  # fmt: skip
    open_source(f"folder:{root}")
    assert "12 of 18 images are masks of others by their names" in capsys.readouterr().err
    open_source(f"folder:{fill(tmp_path / 'c', 'a/gas_mask.png', 'b/wet_seg.png')}")
    assert "masks" not in capsys.readouterr().err


def test_texts_in_folders_are_refused_with_the_table_that_is_read(tmp_path):
    root = fill(tmp_path, *(f"train/{c}/{i}.txt" for c in ("pos", "neg") for i in range(2)))
    with pytest.raises(UserError, match="a table with the columns text and label"):
        open_source(f"folder:{root}")


def test_large_profiles_and_texts_beside_the_pixels_of_a_png_are_no_damage(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "x" * 3_000_000, zip=True)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=bytes(2_000_000), pnginfo=texts)
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), pixels)


def test_joined_files_with_byte_order_marks_do_not_make_a_class_of_the_header(tmp_path):
    one = "\ufefftext,label\nx,a\ny,b\n"
    (tmp_path / "t.csv").write_text(one * 2, encoding="utf-8")
    with pytest.raises(UserError, match="line 4: the first line, .*is repeated"):
        open_source(f"csv:{tmp_path / 't.csv'}")


def test_spaces_of_no_width_make_no_class(capsys):
    assert class_name("\ufeff pos\u200b\u00a0") == "pos"
    names, labels = encode_labels(["pos", "pos\u200b", "neg"], Options(), "t.csv")
    assert (names, labels) == (("neg", "pos"), [1, 1, 0])
    encode_labels(["p\u200bos", "pos", "neg"], Options(), "t.csv")
    assert "1 classes are written in several ways" in capsys.readouterr().err


def test_several_columns_of_labels_in_one_text_are_refused_with_the_flag(tmp_path):
    name = table(tmp_path / "t.csv", "text,x,y", "a,1,0", "b,0,1")
    with pytest.raises(UserError, match=r"--config.data.label_columns=\"\('x', 'y'\)\""):
        open_source(name, Options(label_columns=("x,y",)))


@pytest.mark.parametrize("test", ["id,text", "text"])
def test_a_file_without_labels_beside_one_with_labels_is_for_predict(tmp_path, test):
    table(tmp_path / "train.csv", "text,label", "a,x", "b,y")
    table(tmp_path / "test.csv", test, *(",".join("a" for _ in test.split(",")) for _ in "12"))
    with pytest.raises(UserError, match="test.csv: has no column 'label'.*the command predict"):
        open_source(f"csv:{tmp_path}")


def test_the_rare_kind_of_label_is_the_one_to_correct(tmp_path):
    rows = [f"t{i},{'ab'[i % 2]}" for i in range(6)]
    with pytest.raises(UserError, match="line 8: labels are numbers, such as '30' here"):
        open_source(table(tmp_path / "t.csv", "text,label", *rows, "Total,30"))


def test_two_separators_in_one_file_are_named(tmp_path):
    name = table(tmp_path / "t.tsv", "text,label", "a\tx", "b\ty")
    with pytest.raises(UserError, match="by 'comma', and those of this line by 'tab'"):
        open_source(name)


def test_an_encoded_name_is_answered_with_the_file_that_is_there(tmp_path):
    fill(tmp_path, "my img.png")
    assert f"there is {tmp_path}/my img.png" in path_hint(f"{tmp_path}/my%20img.png")


def test_other_labels_of_equal_inputs_are_counted_for_several_labels():
    inputs = np.array([[1], [1], [2], [2]], np.int32)
    labels = np.array([[1, 0], [0, 1], [1, 1], [1, 1]], np.float32)
    examples = EncodedExamples({"input_ids": inputs, "label": labels})
    assert contradictions(examples, ("input_ids",)) == [1]

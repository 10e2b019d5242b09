"""Tables in text files: columns, labels, splits, formats; and published tables, if installed."""

import os

import numpy as np
import pytest
from PIL import Image

from finetune_jax.config import default
from finetune_jax.data.class_map import open_configured
from finetune_jax.data.sources import Options, open_source
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def rows(source, split):
    examples = source.read(split)
    return [examples[i] for i in range(len(examples))]


def test_texts_and_class_names(tmp_path):
    lines = [f'"text, {i}",{"yes" if i % 3 else "no"}' for i in range(30)]
    path = write(tmp_path / "t.csv", "text,label\n" + "\n".join(lines))
    source = open_source(f"csv:{path}")
    assert source.class_names == ("no", "yes")
    assert source.splits == {"train": 24, "validation": 3, "test": 3}
    seen = [row for split in source.splits for row in rows(source, split)]
    assert sorted(row["text"] for row in seen) == sorted(f"text, {i}" for i in range(30))
    for row in seen:
        assert row["label"] == bool(int(row["text"].split()[1]) % 3)
    assert np.bincount([row["label"] for row in rows(source, "test")]).tolist() == [1, 2]


def test_a_split_column_decides(tmp_path):
    path = write(tmp_path / "t.csv", "text,label,split\na,x,train\nb,y,dev\nc,x,test\nd,y,train\n")
    source = open_source(f"csv:{path}")
    assert source.splits == {"train": 2, "validation": 1, "test": 1}
    assert rows(source, "validation")[0]["text"] == "b"
    write(path, "text,label,split\na,x,trian\n")
    with pytest.raises(UserError, match="Did you mean 'train'"):
        open_source(f"csv:{path}")


@pytest.mark.parametrize("name", ["set", "Subset", "phase"])
def test_a_column_of_splits_has_other_names_too(tmp_path, capsys, name):
    lines = ["a,x,train", "b,y,Val", "c,x,test", "d,y,train"]
    path = write(tmp_path / "t.csv", f"text,label,{name}\n" + "\n".join(lines))
    assert open_source(f"csv:{path}").splits == {"train": 2, "validation": 1, "test": 1}
    assert f"split by the column {name!r}" in capsys.readouterr().err
    write(path, f"text,label,{name}\na,x,train\nb,y,1\nc,x,2\nd,y,train\n")  # no splits
    assert sum(open_source(f"csv:{path}").splits.values()) == 4
    assert "split by" not in capsys.readouterr().err


def test_a_mark_of_validation_rows_that_is_not_read_is_said(tmp_path, capsys):
    lines = [f"text {i},{'xy'[i % 2]},{i % 5 == 0}" for i in range(20)]
    path = write(tmp_path / "t.csv", "text,label,is_valid\n" + "\n".join(lines))
    assert open_source(f"csv:{path}").splits == {"train": 16, "validation": 2, "test": 2}
    assert "the column 'is_valid' is not read, and the table is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "hint"),
    [("a.JPG", "a.jpg: write names in their case"), ("b.jpg", "sub/b.jpg in the table"),
     ("b", "sub/b.jpg in the table"), ("c.jpg", "paths are relative"),
     ("x" * 300, "cannot be read: File name too long")],
)  # fmt: skip
def test_a_missing_image_that_lies_nearby_is_named(tmp_path, written, hint):
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    path = write(tmp_path / "t.csv", f"image,label\na.jpg,x\n{written},y\n")
    with pytest.raises(UserError, match=hint):
        open_source(f"csv:{path}")


def test_a_file_per_split_by_its_name_or_by_what_is_written(tmp_path):
    for name in ("sts-train", "sts-dev", "final"):
        write(tmp_path / f"{name}.tsv", f"text\tlabel\n{name}\ta\n")
    files = [f"{tmp_path}/sts-train.tsv", f"{tmp_path}/sts-dev.tsv"]
    source = open_source(f"csv:{files[0]},{files[1]},test={tmp_path}/final.tsv")
    assert {s: rows(source, s)[0]["text"] for s in source.splits} == {
        "train": "sts-train", "validation": "sts-dev", "test": "final",
    }  # fmt: skip
    with pytest.raises(UserError, match="does not say which split"):
        open_source(f"csv:{files[0]},{tmp_path}/final.tsv")
    with pytest.raises(UserError, match="are both the split 'train'"):
        open_source(f"csv:{files[0]},train={files[1]}")


@pytest.mark.parametrize(
    ("values", "options", "names", "labels"),
    [
        (["1", "2.5", "-3"], {}, (), [1.0, 2.5, -3.0]),
        (["10", "2", "10"], {"label_kind": "class"}, ("2", "10"), [1, 0, 1]),
        (["b:x", "a:y", "b:z"], {"label_until": ":"}, ("a", "b"), [1, 0, 1]),
        (["a|b", "", "b"], {"label_kind": "classes"}, ("a", "b"), [[0, 1], [], [1]]),
        (["7", "x", " y"], {"label_kind": "text"}, (), ["7", "x", " y"]),
    ],
)
def test_labels_are_inferred_or_as_said(tmp_path, values, options, names, labels):
    path = write(
        tmp_path / "train.csv", "n,label\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values))
    )
    source = open_source(f"csv:train={path}", Options(**options))
    assert source.class_names == names
    found = {row["n"]: row["label"] for row in rows(source, "train")}
    assert [found[str(i)] for i in range(len(values))] == labels


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,label\n1,2\n3,x\n", {}, "t.csv, line 3: .* numbers, such as '2', and names, .* 'x'"),
        ("a,label\n1,2\n3,x\n", {"label_kind": "number"}, "line 3: expected a number .* 'x'"),
        ("a,label\n1,x\n3,\n", {}, "t.csv, line 3: the label is empty"),
        ("a,label\n1,2,3\n", {}, "line 2: expected 2 fields, found 3"),
        ("a,label\n1\n", {"extra": "drop"}, "line 2: expected 2 fields, found 1"),
        ("a,label\n1,x\n", {"label_column": "labl"}, "Did you mean 'label'"),
        ("a,a\n1,x\n", {}, "more than one column is called 'a'"),
        ("", {}, "no rows"),
        ('a,label\n"1,x\n', {}, "data.csv.quoting"),
        ("a,label\n\xe9,x\n", {"encoding": "ascii"}, "not ascii at byte 8"),
        ("a,label\n1,x\n", {"encoding": "utf-9"}, "unknown encoding"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_as_expected_is_reported_by_place(tmp_path, text, options, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(UserError, match=message):
        open_source(f"csv:{path}", Options(**options))


def test_images_lie_relative_to_the_table(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(10):
        Image.fromarray(np.full((2, 3, 3), 10 * i, np.uint8)).save(tmp_path / f"pictures/{i}.png")
    lines = "".join(f"pictures/{i}.png,{i}\n" for i in range(10))
    path = write(tmp_path / "t.csv", "file,label\n" + lines)
    source = open_source(f"csv:{path}", Options(image_column="file"))
    for row in rows(source, "train"):
        assert (row["image"] == 10 * row["label"]).all()
    assert set(source.columns) == {"image", "label", "path"}
    before = source.origin
    os.utime(tmp_path / "pictures/3.png", (1, 1))
    assert open_source(f"csv:{path}", Options(image_column="file")).origin != before
    (tmp_path / "pictures/3.png").unlink()
    with pytest.raises(UserError, match="3.png: cannot be read"):
        open_source(f"csv:{path}", Options(image_column="file"))


def test_a_table_may_have_pairs_of_images(tmp_path):
    for i in range(10):
        Image.fromarray(np.full((2, 3 + i, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    lines = "".join(f"{i}.png,{9 - i}.png,{i}\n" for i in range(10))
    path = write(tmp_path / "t.csv", "left,right,label\n" + lines)
    source = open_source(f"csv:{path}", Options(image_column="left, right"))
    for row in rows(source, "train"):
        assert (row["image"] == 10 * row["label"]).all()
        assert (row["image2"] == 90 - 10 * row["label"]).all()
        assert row["path"] == str(tmp_path / f"{row['label']:.0f}.png")
    assert set(source.columns) == {"image", "image2", "label", "path", "path2"}
    for wanted, message in (
        ("left,rihgt", "has no column 'rihgt'. Did you mean 'right'"),
        (",right", "two different ones with a comma between them, found ',right'"),
        ("left,left", "two different ones with a comma between them, found 'left,left'"),
        ("left,right,label", "expected a column, or two"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(f"csv:{path}", Options(image_column=wanted))
    # A bad label is found in any row.
    (tmp_path / "3.png").write_bytes(b"")
    skipping = Options(image_column="left,right", on_bad_image="skip")
    kept = open_source(f"csv:train={path}", skipping).read("train")
    assert sorted(kept[i]["label"] for i in range(len(kept))) == [0, 1, 2, 4, 5, 7, 8, 9]


def test_a_config_says_how_a_table_is_written(tmp_path):
    path = write(tmp_path / "all.label", 'DESC:x What " is it ?\nNUM:y How far ?\n', "latin-1")
    config = default()
    config.data.source = f"csv:train={path}"
    config.data.label_until = ":"
    config.data.csv.update(
        sep="space", header=("label", "text"), encoding="latin-1", quoting=False, extra="join"
    )
    found = {row["text"]: row["label"] for row in rows(open_configured(config.data), "train")}
    assert found == {'What " is it ?': 0, "How far ?": 1}


def test_numbers_that_should_be_classes_are_pointed_at(tmp_path):
    config = default()
    path = write(
        tmp_path / "t.csv", "image,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(9))
    )
    for i in range(9):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{i}.png")
    config.data.source = f"csv:{path}"
    with pytest.raises(UserError, match="set data.label_kind to 'class'"):
        open_setup(config)
    config.data.label_kind = "class"
    assert open_setup(config).task.class_names == ("0", "1")
    config.data.source = f"csv:{write(tmp_path / 'u.csv', 'text,label' + chr(10) + 'a,b')}"
    with pytest.raises(UserError, match="the model reads 'image', and examples of"):
        open_setup(config)


DATA = os.environ.get("FINETUNE_JAX_DATA")
real = pytest.mark.skipif(not DATA, reason="FINETUNE_JAX_DATA is not set")
PLAIN = {"quoting": False}


@real
@pytest.mark.parametrize(
    ("files", "options", "sizes", "classes"),
    [
        ("text_sst2/{train,dev,test}.tsv",
         {"header": ("text", "label"), "label_kind": "class", **PLAIN}, (6920, 872, 1821), 2),
        ("text_stsb/sts-{train,dev,test}.csv",
         {"sep": "tab", "extra": "drop", "label_column": "score", **PLAIN,
          "header": ("genre", "file", "year", "id", "score", "text", "text2")},
         (5749, 1500, 1379), 0),
        ("text_banking77/{train,test}.csv", {"label_column": "category"}, (10003, 3080), 77),
        ("text_sick/SICK_{train,test_annotated}.txt",
         {"sep": "tab", "label_column": "entailment_judgment", **PLAIN}, (4500, 4927), 3),
        ("text_trec/{train_5500,TREC_10}.label",
         {"sep": "space", "extra": "join", "encoding": "latin-1", "header": ("label", "text"),
          "label_until": ":", **PLAIN}, (5452, 500), 6),
    ],
)  # fmt: skip
def test_real_tables_have_their_published_sizes(files, options, sizes, classes):
    before, names = files.split("{")
    names, after = names.split("}")
    splits = ("train", "validation", "test") if len(sizes) == 3 else ("train", "test")
    text = ",".join(
        f"{split}={DATA}/{before}{name}{after}"
        for split, name in zip(splits, names.split(","), strict=True)
    )
    source = open_source(f"csv:{text}", Options(**options))
    assert tuple(source.splits.values()) == sizes
    assert len(source.class_names) == classes
    example = source.read("train")[0]
    if classes:
        assert 0 <= example["label"] < classes
    else:
        assert 0 <= example["label"] <= 5
        assert example["text"] and example["text2"]


def test_a_column_has_one_use_and_masks_are_no_texts(tmp_path):
    (tmp_path / "t.csv").write_text("image,label,mask\na.png,x,b.png\n")
    for key, column in (("mask_column", "image"), ("label_column", "image")):
        with pytest.raises(UserError, match=f"data.{key}: .* 'image' is the 'image' of an example"):
            open_source(f"csv:{tmp_path}/t.csv", Options(**{key: column}))
    with pytest.raises(UserError, match="data.mask_column: .* not from a csv file"):
        open_source(f"csv:{tmp_path}/t.csv", Options(mask_column="label", label_column=""))

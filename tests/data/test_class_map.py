"""The file of ``data.classes``: order, subset, new names and merged classes, in every source."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from finetune_jax.config import default
from finetune_jax.data.class_map import open_configured, read_classes
from finetune_jax.errors import UserError
from finetune_jax.portable import portable
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

NAMES = ("beagle", "cat", "eel", "poodle")


def images(folder, names=NAMES, count=10):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            value = 40 * NAMES.index(name) + i if name in NAMES else 250
            Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(folder / name / f"{i}.png")
    return folder


def open_with(tmp_path, source, text, **changes):
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8")
    config = default()
    config.data.source, config.data.classes = source, str(path)
    config.update_from_flattened_dict(changes)
    return open_configured(config.data)


def table(folder, names=NAMES, count=10):
    rows = [f"{folder}/{name}/{i}.png,{name}" for name in names for i in range(count)]
    path = folder / "table.csv"
    path.write_text("\n".join(["image,label", *rows]) + "\n", encoding="utf-8")
    return f"csv:{path}"


@pytest.mark.parametrize("kind", ["folder", "csv", "hf"])
def test_classes_are_left_out_renamed_and_merged(tmp_path, capsys, kind):
    folder = images(tmp_path / "x")
    name = f"folder:{folder}" if kind == "folder" else table(folder)
    if kind == "hf":
        datasets = pytest.importorskip("datasets")
        rows = [{"value": n, "label": c} for n, c in enumerate(NAMES) for _ in range(10)]
        kinds = datasets.Features(
            {"value": datasets.Value("int64"), "label": datasets.ClassLabel(names=list(NAMES))}
        )
        rows = [{"value": row["value"], "label": NAMES.index(row["label"])} for row in rows]
        datasets.Dataset.from_list(rows, features=kinds).save_to_disk(str(tmp_path / "saved"))
        name = f"hf:{tmp_path / 'saved'}"
    source = open_with(tmp_path, name, "dog\tpoodle\tbeagle\n\nkitten\tcat\n")
    assert source.class_names == ("dog", "kitten")
    assert sum(source.splits.values()) == 30
    found = []
    for split in ("train", "validation", "test", "train[:50%]+test"):
        examples = source.read(split)
        for i in range(len(examples)):
            example = examples[i]
            old = example["value"] if kind == "hf" else int(example["image"][0, 0, 0]) // 40
            assert ("dog", "kitten")[example["label"]] == {0: "dog", 1: "kitten", 3: "dog"}[old]
            found.append(split)
    assert len(found) == 30 + len(source.read("train[:50%]+test"))
    assert "leaves out 10 examples of 1 classes: eel" in capsys.readouterr().err


def test_the_lines_are_the_order_of_the_classes(tmp_path):
    name = f"folder:{images(tmp_path / 'x')}"
    source = open_with(tmp_path, name, "poodle\ncat\neel\nbeagle\n")
    assert source.class_names == ("poodle", "cat", "eel", "beagle")
    setup = default()
    setup.data.source, setup.data.classes = name, str(tmp_path / "classes.txt")
    setup.task.name, setup.data.image_size = "ordinal", 16
    assert open_setup(setup).task.class_names == source.class_names
    assert (
        portable({"data": {"classes": "/home/a/classes.txt"}})["data"]["classes"] == "classes.txt"
    )


def test_labels_of_several_classes_are_merged(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "x,a|b\ny,b|c\nz,\n" * 10)
    changes = {"data.label_kind": "classes"}
    source = open_with(tmp_path, f"csv:{tmp_path}/t.csv", "ab\ta\tb\nc\n", **changes)
    examples = source.read("train")
    for i in range(len(examples)):
        wanted = {"x": {0}, "y": {0, 1}, "z": set()}[examples[i]["text"]]
        assert set(examples[i]["label"]) == wanted
    with pytest.raises(UserError, match="each class needs a line where an example has several"):
        open_with(tmp_path, f"csv:{tmp_path}/t.csv", "a\nb\n", **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog\tpodle\n", "the data has no class 'podle'. Did you mean 'poodle'"),
        ("cat\ncat\n", "the class 'cat' has two lines"),
        ("cat\ndog\tcat\n", "'cat' is in more than one class"),
        (" \n", "expected one class per line, found no line"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        open_with(tmp_path, f"folder:{images(tmp_path / 'x', count=1)}", text)


def test_a_missing_file_and_two_orders_are_refused(tmp_path):
    with pytest.raises(UserError, match="data.classes: .*no.txt: cannot be read"):
        read_classes(tmp_path / "no.txt")
    with pytest.raises(UserError, match="expected an empty data.class_order"):
        open_with(tmp_path, "digits", "1\n", **{"data.class_order": ("1",)})
    with pytest.raises(UserError, match="each class of a mask needs a line"):
        open_with(tmp_path, "digits:masks", "background\n")


def test_a_class_that_only_another_split_has_is_refused_or_left_out(tmp_path):
    folder = tmp_path / "x"
    images(folder / "train", ("cat", "eel"))
    images(folder / "test", ("cat", "eel", "poodle"), count=2)
    message = "test has classes that the training split does not have: poodle"
    config = default()
    config.data.source = f"folder:{folder}"
    with pytest.raises(UserError, match=message):
        open_configured(config.data)
    source = open_with(tmp_path, f"folder:{folder}", "cat\neel\n")
    assert source.splits == {"train": 18, "validation": 2, "test": 4}
    lines = ["text,label,split", "a,x,train", "b,y,train", "c,z,val"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    config.data.source = f"csv:{tmp_path}/t.csv"
    with pytest.raises(UserError, match="validation has classes .*: z; classes of training: x, y"):
        open_configured(config.data)


def test_a_rare_class_that_no_training_example_has_is_reported(tmp_path, capsys):
    rows = [f"{i},common" for i in range(8)] + ["8,rare"]  # the ninth of ten is for validation
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = default()
    config.data.source = f"csv:{tmp_path}/t.csv"
    open_configured(config.data)
    assert "outputs of these classes are never trained: rare" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_two_unicode_forms_of_a_name_are_one_class(tmp_path, kind):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    if kind == "folder":
        images(tmp_path / "x", (*forms, "cat"))
        name = f"folder:{tmp_path / 'x'}"
    else:
        rows = [f"{i},{label}" for i in range(10) for label in (*forms, "cat")]
        (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
        name = f"csv:{tmp_path}/t.csv"
    config = default()
    config.data.source = name
    source = open_configured(config.data)
    assert set(source.class_names) == {forms[0], "cat"}
    assert sum(source.splits.values()) == 30
    config.data.class_order = ("cat", forms[1])
    assert open_configured(config.data).class_names == ("cat", forms[1])


@pytest.mark.parametrize("task", ["regression", "ordinal", "similarity"])
def test_a_head_is_not_copied_for_outputs_that_are_no_classes(tmp_path, task):
    names = tmp_path / "names.txt"
    names.write_text("1\n2\n3\n")
    config = default()
    config.task.name = task
    if task == "similarity":
        config.data.source = "digits:pairs"
    config.pretrained.path = "package:resnet20_cifar10"
    config.pretrained.head_init, config.pretrained.class_names = "copy", str(names)
    with pytest.raises(UserError, match="the outputs of the task .* are not classes"):
        train(open_setup(config), tmp_path / "run")

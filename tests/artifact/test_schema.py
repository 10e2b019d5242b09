"""Crafted edits of ``artifact.json``: refused by name, with and without a new checksum."""

import json
import shutil

import numpy as np
import pytest
from test_artifact import CLASSES, saved

from finetune_jax.artifact import Artifact
from finetune_jax.errors import UserError
from finetune_jax.files import require_seal, seal, write_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole") / "artifact")


@pytest.fixture
def edited(whole, tmp_path):
    """A function of an edit and of whether the checksum is made anew, to an artifact's folder."""

    def edit(change, sealed=True):
        shutil.copytree(whole, tmp_path / "artifact", dirs_exist_ok=True)
        content = json.loads((whole / "artifact.json").read_text())
        content = require_seal(content, "") if sealed else content
        change(content)
        text = json.dumps(seal(content) if sealed else content)
        (tmp_path / "artifact" / "artifact.json").write_text(text)
        return tmp_path / "artifact"

    return edit


def at(path, value):
    """An edit that sets the value at a dotted key."""

    def change(card):
        *parents, last = path.split(".")
        for name in parents:
            card = card[name]
        card[last] = value

    return change


def without(path):
    """An edit that removes a dotted key."""

    def change(card):
        *parents, last = path.split(".")
        for name in parents:
            card = card[name]
        del card[last]

    return change


EDITS = [
    at("task.class_names", list(reversed(CLASSES))),
    at("preprocess.mean", [0.4, 0.4, 0.3]),
    at("preprocess.crop", 0.5),
    at("preprocess.channels", "bgr"),
    at("preprocess.interpolation", "nearest"),
    at("fingerprint", "0" * 64),
    at("scores", {"test": {"accuracy": 1.0}}),
    at("version", 1),
    without("plan"),
    without("sha256"),
]
"""Edits that are valid in themselves, so that the checksum alone can notice them."""


@pytest.mark.parametrize("number", range(len(EDITS)))
def test_an_edit_is_noticed_by_the_checksum(edited, number):
    folder = edited(EDITS[number], sealed=False)
    with pytest.raises(UserError, match=r"artifact\.json: the content .* checksum"):
        Artifact.load(folder)


WRONG = [
    ("task.class_names", [*CLASSES[:4], CLASSES[0]], "class names: 1 are there more than once"),
    ("task.class_names", [*CLASSES, "fox"], r"model.num_classes is 5, .* the task's outputs, 6"),
    ("task.class_names", [], "class names: expected at least one"),
    ("task.class_names", "abcde", r"class_names: expected a list, found a text 'abcde'"),
    ("task.class_names", [1, 2, 3, 4, 5], r"class_names\[0\]: expected a text, found a number 1"),
    ("task.class_names", ["a", "b", "", "d", "e"], "the name of class 2 is empty"),
    ("task.name", "clasification", "unknown task 'clasification'. Did you mean 'classification'"),
    ("task.name", None, "task.name: expected a text, found null"),
    ("task.counts", [1, 2], "expected 5 numbers of examples, one per class"),
    ("task.neck", 4, "task 'classification': unknown key 'neck'"),
    ("task", [], "task: expected an object, found a list"),
    ("preprocess.size", 60000, "size: expected a whole number from 1 to 4096, found a number 60"),
    ("preprocess.size", 32, "model.image_size is 16, which does not fit preprocess.size, 32"),
    ("preprocess.size", -16, "size: expected a whole number"),
    ("preprocess.size", "16", "size: expected a whole number from 1 to 4096, found a text '16'"),
    ("preprocess.size", 10**400, "found a whole number of more than 18 digits"),
    ("preprocess.size", True, "found a truth value True"),
    ("preprocess.mean", [0.5, 0.5], "mean: expected a list of 3 members, found 2"),
    ("preprocess.mean", [0.5, 0.5, 1e308], "mean.2.: expected a finite number"),
    ("preprocess.mean", [0.5, "0.5", 0.5], r"mean\[1\]: expected a finite number, found a text"),
    ("preprocess.std", [0.5, 0.0, 0.5], r"std\[1\]: expected a finite number in"),
    ("preprocess.std", [0.5, None, 0.5], "std.1.: expected a finite number, found null"),
    ("preprocess.crop", 1e-9, "images would have 1[0-9]* pixels a side before their crop"),
    ("preprocess.crop", 1.5, r"crop: expected a finite number in \[0, 1\]"),
    ("preprocess.interpolation", "bicubik", "Did you mean 'bicubic'"),
    ("preprocess.kind", "text", "tokenizer.json: missing"),
    ("preprocess.kind", "images", "unknown value 'images'. Did you mean 'image'"),
    ("preprocess.kind", "image pair", "preprocess.kind is 2, which does not fit the inputs"),
    ("preprocess.colour", "rgb", "unknown key 'colour'"),
    ("model.name", "resnet20_cifer", "Did you mean 'resnet20_cifar'"),
    ("model.name", ["resnet20_cifar"], "model.name: expected a text, found a list"),
    ("model.num_classes", 6, "model.num_classes is 6, which does not fit"),
    ("model.num_classes", 10**9, "num_classes: expected a whole number from 1 to 1000000"),
    ("model.image_size", 60000, "image_size: expected a whole number from 1 to 4096"),
    ("model.dtype", "float64", "dtype: unknown value 'float64'"),
    ("model.head", "gap_linear", "has one head only"),
    ("model.depth", 20, "model: unknown key 'depth'"),
    ("model", None, "model: expected an object, found null"),
    ("deltas", {"kind": "lora"}, "deltas: expected a list, found an object"),
    ("deltas", [{"kind": "lora", "module": "head", "rank": "8"}], "rank: expected a whole number"),
    (
        "deltas",
        [{"kind": "lora", "module": "head", "rank": -8}],
        "expected a number of at least 0, found -8",
    ),
    ("deltas", [{"kind": "lora", "module": "heart"}], "the model has no module 'heart'"),
    ("deltas", [{"kind": "lora", "module": "head"}], "the rank must be from 1 to 5 at 'head'"),
    ("deltas", [{"kind": "ssf", "module": "head"}], "does not fit resnet20_cifar"),
    ("deltas", [{"kind": "lorra", "module": "head"}], "unknown delta 'lorra'"),
    ("contents", "most", "contents: unknown value 'most'"),
    ("contents", "delta", "give that file with --base"),
    ("base", None, "base: expected an object"),
    ("base.sha256", "12", "base.sha256: expected the 64 digits"),
    ("base_dtypes", {"params/head/kernel": "int4"}, "unknown value 'int4'"),
    ("fingerprint", "f" * 64, "does not have the fingerprint"),
    ("fingerprint", 7, "fingerprint: expected the 64 digits"),
    ("scores", [1], "scores: expected an object"),
    ("plan", "full", "plan: expected an object"),
    ("providers", "os", "providers: expected a list"),
    ("version", 3, "artifact version 3, this code reads 1 to 2"),
    ("version", "2", "artifact version '2'"),
    ("version", [2], "artifact version"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_a_wrong_value_is_refused_by_name_even_with_a_new_checksum(edited, key, value, words):
    folder = edited(at(key, value))
    with pytest.raises(UserError, match=words) as error:
        Artifact.load(folder)
    assert str(folder) in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("key", ["model", "task", "preprocess.size", "fingerprint", "base.file"])
def test_a_missing_key_is_refused_by_name(edited, key):
    with pytest.raises(UserError, match=rf"{key}: missing"):
        Artifact.load(edited(without(key)))


def test_deep_nesting_is_refused(edited):
    folder = edited(lambda card: None)
    text = (folder / "artifact.json").read_text()
    deep = "[" * 200_000 + "]" * 200_000
    (folder / "artifact.json").write_text(text.replace('"full"', deep))
    with pytest.raises(UserError, match="nested too deeply"):
        Artifact.load(folder)


def test_a_new_key_is_reported_and_not_read(edited, capsys):
    Artifact.load(edited(at("colour_space", "srgb")))
    assert "unknown keys, which are not read: colour_space" in capsys.readouterr().err


def test_an_older_artifact_is_read_and_reported(whole, edited, capsys):
    def older(card):
        card["version"] = 1
        del card["preprocess"]["max_pixels"]

    folder = edited(older)
    card = json.loads((folder / "artifact.json").read_text())
    write_json(folder / "artifact.json", require_seal(card, ""))
    image = np.zeros((16, 16, 3), np.uint8)
    (found,), (expected,) = (Artifact.load(f).predict([image]) for f in (folder, whole))
    assert found == expected
    said = capsys.readouterr().err
    assert said.count("of an older version and has no checksum") == 1

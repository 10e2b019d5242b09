"""Predictions of folders, patterns, tables and thousands of inputs, and the files they go to."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from PIL import Image
from test_artifact import CLASSES, saved

from finetune_jax.artifact import Artifact
from finetune_jax.artifact.items import prediction_inputs
from finetune_jax.artifact.prediction_file import (
    columns_of,
    predict_rows,
    require_writable,
    write_predictions,
)
from finetune_jax.data.preprocess import ImagePairPreprocess, ImagePreprocess
from finetune_jax.data.sources import Options
from finetune_jax.data.text import TextPreprocess
from finetune_jax.errors import UserError


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return Artifact.load(saved(tmp_path_factory.mktemp("saved") / "artifact", "resnet8_cifar"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven images in a folder that also holds other files, as folders of users do."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    (root / "b").mkdir()
    (root / ".ipynb_checkpoints").mkdir()
    names = [f"{i}.png" for i in range(8)] + ["b/deep.JPG", "b/[1].png", ".hidden.png"]
    for name in [*names, ".ipynb_checkpoints/0.png"]:
        pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / "notes.txt").write_text("no image")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (9, 9), (200, 10, 10)).save(elsewhere / "linked.png")
    (root / "a_link").symlink_to(elsewhere)
    (root / "a_link" / "loop").symlink_to(root)
    return root


SEEN = ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "6.png", "7.png",
        "a_link/linked.png", "b/[1].png", "b/deep.JPG"]  # fmt: skip


def named(found, root):
    return [os.path.relpath(one.named["image"], root) for one in found]


def test_a_folder_stands_for_its_images_in_order(artifact, photos, capsys):
    found = prediction_inputs([str(photos), str(photos / "3.png")], artifact.preprocess)
    assert named(found, photos) == [*SEEN, "3.png"]
    assert "1 files are not images by name: .txt" in capsys.readouterr().err
    rows = predict_rows(artifact, found, top=2, batch_size=4)
    assert [row["image"] for row, _ in rows] == [one.named["image"] for one in found]
    for row, reading in rows:
        (expected,) = artifact.predict([row["image"]])
        assert list(reading["probabilities"]) == list(expected["probabilities"])[:2]
        assert reading["probabilities"] == pytest.approx(
            {k: expected["probabilities"][k] for k in reading["probabilities"]}, abs=1e-5
        )


def test_patterns_match_as_in_a_shell(artifact, photos):
    def names(*patterns):
        return named(
            prediction_inputs([str(photos / p) for p in patterns], artifact.preprocess), photos
        )

    assert names("?.png") == SEEN[:8]
    assert names("*/deep.*") == ["b/deep.JPG"]
    assert names("b/*") == SEEN[-2:]
    assert names("b/[1].png") == ["b/[1].png"]  # a name that looks like a pattern
    with pytest.raises(UserError, match=r"\*.gif: no file has a name of this pattern"):
        names("*.gif")
    with pytest.raises(UserError, match="missing.png: no such image file"):
        artifact.predict([str(photos / "missing.png")])


def test_a_folder_without_images_is_refused(artifact, tmp_path):
    with pytest.raises(UserError, match="holds no image .*it holds no files"):
        prediction_inputs([str(tmp_path)], artifact.preprocess)
    (tmp_path / "a.raw").write_bytes(b"x")
    with pytest.raises(UserError, match="holds no image .*files of other kinds: .raw"):
        prediction_inputs([str(tmp_path)], artifact.preprocess)
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    with pytest.raises(UserError, match=r"udcff.png': the name of this file is not UTF-8"):
        prediction_inputs([str(tmp_path)], artifact.preprocess)


def test_tables_name_images_relative_to_their_folder(artifact, photos, tmp_path):
    table = photos / "table.csv"
    table.write_text("\ufeffid,image\n7,5.png\n8,b/deep.JPG\n", encoding="utf-8")
    found = prediction_inputs([str(table)], artifact.preprocess)
    assert named(found, photos) == ["5.png", "b/deep.JPG"]
    table.write_text("file;n\n5.png;1\n")
    with pytest.raises(UserError, match="no column 'image'.*--columns"):
        prediction_inputs([str(table)], artifact.preprocess)
    options = Options(sep=";", image_column="file")  # as the run read its tables
    assert named(prediction_inputs([str(table)], artifact.preprocess, options), photos) == ["5.png"]
    options = Options(sep=";")
    assert named(
        prediction_inputs([str(table)], artifact.preprocess, options, ["file"]), photos
    ) == ["5.png"]
    with pytest.raises(UserError, match="--columns: the model reads image, which are 1 columns"):
        prediction_inputs([str(table)], artifact.preprocess, options, ["file", "n"])
    table.unlink()


def test_pairs_come_from_tables_and_tabs(photos):
    pair = ImagePairPreprocess(16)
    table = photos / "pairs.csv"
    table.write_text("left,right\n0.png,1.png\n")
    (found,) = prediction_inputs([str(table)], pair, Options(image_column="left, right"))
    one, two = str(photos / "0.png"), str(photos / "1.png")
    assert found.named == {"image": one, "image2": two} and found.item == f"{one}\t{two}"
    assert prediction_inputs([f"{one}\t{two}"], pair) == [found]
    with pytest.raises(UserError, match="expected 2 image files separated by a tab, or a table"):
        prediction_inputs([str(photos)], pair)
    table.unlink()


def test_bad_images_are_all_listed_or_left_out(artifact, photos, tmp_path, capsys, monkeypatch):
    files = [str(photos / f"{i}.png") for i in range(5)]
    (tmp_path / "broken.png").write_bytes((photos / "0.png").read_bytes()[:100])
    bad = [str(tmp_path / "broken.png"), str(tmp_path / "missing.png")]
    items = [files[0], bad[0], *files[1:3], bad[1], *files[3:]]
    with pytest.raises(UserError) as refused:
        artifact.predict(items, batch_size=2)
    message = str(refused.value)
    assert "2 of 7 images cannot be read, and nothing is predicted" in message
    assert all(path in message for path in bad) and "on_bad_image=skip" in message
    results = artifact.predict(items, batch_size=2, on_bad_image="skip")
    assert [r["image"] for r in results] == files
    for result, expected in zip(results, artifact.predict(files), strict=True):
        assert result["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    assert "2 of 7 images left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of 2 images can be read; the first: .*broken"):
        artifact.predict(bad, on_bad_image="skip")
    # The limit of training.
    monkeypatch.setitem(vars(artifact), "preprocess", ImagePreprocess(16, max_pixels=100))
    with pytest.raises(UserError, match="0.png: it has 24 x 20 pixels, more than the 100"):
        artifact.predict(files[:1])


def test_texts_are_arguments_or_rows_of_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = TextPreprocess("", 8), TextPreprocess("", 8, ("left", "right"))
    (found,) = prediction_inputs(["is it *good*?\tyes"], one)
    assert found.item == found.named == {"text": "is it *good*?\tyes"}
    (found,) = prediction_inputs(["a\tb"], two)
    assert found.item == found.named == {"left": "a", "right": "b"}
    Path("some.tsv").write_text("id\ttext\tleft\tright\n1\tso, so\tl\tr\n2\t猫\tm\ts\n")
    assert [x.item for x in prediction_inputs(["some.tsv"], one)] == [
        {"text": "so, so"},
        {"text": "猫"},
    ]
    assert [x.item for x in prediction_inputs(["*.tsv", "b"], one, columns=["left"])] == [
        {"text": "l"}, {"text": "m"}, {"text": "b"},
    ]  # fmt: skip
    assert prediction_inputs(["some.tsv"], two)[1].named == {"left": "m", "right": "s"}
    with pytest.raises(UserError, match="reviews.csv: no such table"):
        prediction_inputs(["reviews.csv"], one)
    with pytest.raises(UserError, match=r"no column 'text'.*--columns"):
        Path("other.csv").write_text("body\nx\n")
        prediction_inputs(["other.csv"], one)
    Path("notes.txt").write_text("x")
    Path("dead").symlink_to("nowhere")
    for name in ("notes.txt", ".", "dead"):
        with pytest.raises(UserError, match="a file or a folder, and the model reads texts"):
            prediction_inputs([name], one)


def test_standard_input_is_a_list_of_inputs(artifact, photos, monkeypatch):
    def given(content, preprocess=artifact.preprocess):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        return prediction_inputs(["-"], preprocess)

    listed = f"{photos}/3.png\r\n\n{photos}/b/[1].png\n{photos}/b\n".encode()
    expected = ["3.png", "b/[1].png", "b/[1].png", "b/deep.JPG"]
    assert named(given(listed), photos) == expected
    assert named(given(f"{photos}/3.png\0{photos}/b/[1].png\0".encode()), photos) == expected[:2]
    text = TextPreprocess("", 8)
    assert [x.item["text"] for x in given("no table.csv\n 猫\n".encode(), text)] == [
        "no table.csv", " 猫",
    ]  # fmt: skip
    for content, words in (
        (b"\n\n", "has no lines"),
        (b"\xff\xfe.png\n", "expected lines of text in UTF-8"),
    ):
        with pytest.raises(UserError, match=words):
            given(content)


READINGS = [
    ({"label": "b", "probabilities": {"b": 0.7, "a": 0.3}},
     {"prediction": "b", "class_1": "b", "probability_1": 0.7, "class_2": "a",
      "probability_2": 0.3}),
    ({"labels": ["b", "a"], "probabilities": {"b": 0.7, "a": 0.6}},
     {"prediction": "b|a", "class_1": "b", "probability_1": 0.7, "class_2": "a",
      "probability_2": 0.6}),
    ({"labels": [], "probabilities": {}}, {"prediction": ""}),
    ({"value": 2.5}, {"prediction": 2.5}),
    ({"cosine": -0.5}, {"prediction": -0.5}),
    ({"label": "mid", "above": {"low": 0.9, "mid": 0.2}},
     {"prediction": "mid", "above_low": 0.9, "above_mid": 0.2}),
    ({"shares": {"sky": 0.8, "sea": 0.2}},
     {"prediction": "sky", "class_1": "sky", "share_1": 0.8, "class_2": "sea", "share_2": 0.2}),
    ({"extra": [1, 2], "score": 3}, {"prediction": 3, "extra": "[1, 2]"}),
]  # fmt: skip


@pytest.mark.parametrize(("reading", "row"), READINGS)
def test_every_task_is_a_row_of_a_table(reading, row):
    assert columns_of(reading) == row


def test_files_of_predictions_are_read_back_and_never_half_written(tmp_path, monkeypatch):
    names = ["a,b", 'say "x"', "two\nlines", "猫", "قط", "🐈", "\x1b[31m", "a\rb"]
    rows = [
        ({"image": f"{i}\t.png"}, {"label": name, "probabilities": {name: 1 / 3, "rest": 0.1}})
        for i, name in enumerate(names)
    ]
    path = tmp_path / "found.csv"
    write_predictions(path, rows)
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [
        "image", "prediction", "class_1", "probability_1", "class_2", "probability_2",
    ]  # fmt: skip
    assert [row["prediction"] for row in table] == [row["class_1"] for row in table] == names
    assert table[3]["image"] == "3\t.png" and float(table[3]["probability_1"]) == 1 / 3
    write_predictions(tmp_path / "found.json", rows)
    first = json.loads((tmp_path / "found.json").read_text())[0]
    assert first == {**rows[0][0], **rows[0][1]}
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_predictions(path, rows[:1])
    assert path.read_bytes() == before
    for name, words in (("x.txt", "ends in .csv or .json"), ("no/x.csv", "does not exist")):
        with pytest.raises(UserError, match=words):
            require_writable(tmp_path / name, "--output")


@pytest.mark.slow
def test_the_command_writes_tables_and_keeps_its_remarks_off_standard_output(tmp_path, photos):
    folder = saved(tmp_path / "artifact")
    (tmp_path / "bad.png").write_bytes(b"x")
    output = tmp_path / "found.csv"
    arguments = [f"--workdir={folder}", str(photos), str(tmp_path / "bad.png"), "--batch_size=4"]
    found = run_command("predict", *arguments, f"--output={output}", "--on_bad_image=error")
    assert found.returncode == 2 and not output.exists(), found.stderr
    assert "1 of 12 images cannot be read" in found.stderr and "bad.png" in found.stderr
    found = run_command("predict", *arguments, f"--output={output}", "--json")
    assert found.returncode == 0, found.stderr
    results = json.loads(found.stdout)
    assert [os.path.relpath(r["image"], photos) for r in results] == SEEN
    assert set(results[0]["probabilities"]) == set(CLASSES)
    with output.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["prediction"] for row in table] == [r["label"] for r in results]
    assert "1 of 12 images left out" in found.stderr

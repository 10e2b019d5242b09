"""Configs that an evaluation uses: those of the user's own runs, and those that are trusted."""

import json
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from finetune_jax import config as config_lib
from finetune_jax.artifact import Artifact
from finetune_jax.errors import UserError
from finetune_jax.evaluation import averaging, evaluator
from finetune_jax.evaluation.evaluator import open_run, read_config
from finetune_jax.evaluation.trust import places, require_trust
from finetune_jax.files import write_json


class Opened(Exception):
    """Raised in place of reading the files that a config names."""


@pytest.fixture
def run(short_run, tmp_path, monkeypatch):
    """A copy of a run; the first use of its config raises `Opened`."""

    def opened(*arguments):
        raise Opened

    monkeypatch.setattr(evaluator, "use_cpu_devices", opened)
    monkeypatch.setattr(averaging, "_require_same_data", opened)
    return shutil.copytree(short_run, tmp_path / "run")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another user, or another machine."""
    monkeypatch.setenv("FINETUNE_JAX_STATE", str(tmp_path / "state"))


def change(run, **values):
    content = json.loads((run / "config.json").read_text())
    content["data"].update(values)
    write_json(run / "config.json", content)


def test_an_own_run_is_followed_wherever_it_lies(run):
    with pytest.raises(Opened):
        open_run(run)
    with pytest.raises(Opened):
        averaging.combine([run, run], run / "out")


def test_an_edited_run_is_not_followed(run):
    change(run, source="csv:/etc/passwd", data_dir="/root")
    with pytest.raises(UserError, match=r"config\.json is not .* data\.source='csv:/etc/passwd'; .*"
                       r"data\.data_dir='/root'.*--trust"):  # fmt: skip
        open_run(run)
    with pytest.raises(UserError, match="csv:/etc/passwd"):
        averaging.combine([run, run], run / "out")
    with pytest.raises(UserError) as error:
        open_run(run, data_dir="/home")
    assert "data_dir" not in str(error.value)


@pytest.mark.usefixtures("elsewhere")
def test_the_run_of_a_stranger_is_followed_once_it_is_trusted(run, capsys):
    with pytest.raises(UserError, match="pretrained.path='.*resnet8.safetensors'. If you trust"):
        open_run(run)
    with pytest.raises(Opened):
        open_run(run, trust=True)
    assert "is trusted, and these are read: pretrained.path" in capsys.readouterr().err
    with pytest.raises(Opened):
        open_run(run)
    change(run, data_dir="/etc")
    with pytest.raises(UserError, match="data_dir='/etc'"):
        open_run(run)


@pytest.mark.usefixtures("elsewhere")
def test_a_config_that_names_no_place_needs_no_trust(tmp_path):
    values = config_lib.to_json(config_lib.default())
    assert places(values) == []
    require_trust(values, tmp_path, trust=False)
    values["data"]["prepare"], values["task"]["loss"] = True, "distill(teacher='runs/x')"
    assert places(values) == [
        "data.prepare=True, which downloads", '''task.loss="distill(teacher='runs/x')"'''
    ]  # fmt: skip


@pytest.mark.usefixtures("elsewhere")
def test_a_state_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINETUNE_JAX_STATE", str(tmp_path / "file" / "state"))
    require_trust({"data": {"data_dir": "/x"}}, tmp_path, trust=True)
    assert "configs are not remembered, because" in capsys.readouterr().err


def test_predictions_come_from_the_artifact_alone(short_run, tmp_path, monkeypatch):
    image = np.zeros((16, 16, 3), np.uint8)
    expected = Artifact.load(short_run).predict([image])
    shutil.copytree(short_run / "artifact", tmp_path / "run" / "artifact")
    (tmp_path / "run" / "config.json").write_text('{"data": {"source": "csv:/etc/passwd"')
    shutil.copy(tmp_path / "run" / "config.json", tmp_path / "run" / "artifact")

    def refused(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr("finetune_jax.config.from_json", refused)
    monkeypatch.setattr("finetune_jax.pretrained.sources.resolve", refused)
    assert Artifact.load(tmp_path / "run").predict([image]) == expected


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.batch_size", "16", r"train\.batch_size: expected a whole number .* a text '16'"),
        ("train.batch_size", 10**30, "found a whole number of more than 18 digits"),
        ("train.batch_size", 1.5, "expected a whole number"),
        ("train.epochs", True, "train.epochs: expected a finite number, found a truth value"),
        ("optimizer.learning_rate", None, "expected a finite number, found null"),
        ("model.remat", 1, "model.remat: expected true or false, found a number 1"),
        ("data.source", ["digits"], "data.source: expected a text, found a list with 1 members"),
        ("data.mean", [0.5, "a", 0.5], r"data\.mean\[1\]: expected a finite number"),
        ("data.text_columns", "text", "data.text_columns: expected a list, found a text 'text'"),
        ("data.csv", 3, r"data\.csv: expected an object, found a number 3"),
        ("data.souce", "x", r"unknown config key 'data\.souce'. Did you mean 'source'"),
        ("scheme", {"a": 1}, "scheme: expected a list, found an object"),
        ("scheme", [["head/.*", 3]], r"scheme\[0\]\[1\]: expected a text"),
    ],
)
def test_a_config_of_wrong_types_is_refused_by_key(tmp_path, key, value, words):
    values = config_lib.to_json(config_lib.default())
    *parents, last = key.split(".")
    node = values
    for name in parents:
        node = node[name]
    node[last] = value
    write_json(tmp_path / "config.json", values)
    with pytest.raises(UserError, match=words) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_data_that_was_moved_is_named(short_run, tmp_path, capsys):
    for name in range(10):
        (tmp_path / str(name)).mkdir()
        for i in range(10):
            image = np.full((8, 8, 3), 20 * name + i, np.uint8)
            Image.fromarray(image).save(tmp_path / str(name) / f"{i}.png")
    found = open_run(short_run, data_source=f"folder:{tmp_path}")
    assert found.source.name == f"folder:{tmp_path}"
    assert found.source.splits["test"] == 10
    every = f"--shifts='folder:{tmp_path}@train+validation+test' scores all of them"
    assert f"split_seed=0: 80 of train, 10 of validation, 10 of test; {every}" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"no folder 'none'") as error:
        open_run(short_run, data_source=f"folder:{tmp_path}/none")
    assert "--data_source" not in str(error.value)
    with (
        pytest.raises(UserError, match=r"data.source: gone If .*: --data_source=folder:PATH"),
        evaluator.source_may_have_moved("folder:x", ""),
    ):
        raise UserError("data.source: gone")


@pytest.mark.usefixtures("elsewhere")
def test_trust_in_a_run_with_other_data_is_not_trust_in_its_own_data(run):
    change(run, source="csv:/etc/passwd")
    with pytest.raises(UserError, match="pretrained.path") as error:
        open_run(run, data_source="digits")
    assert "passwd" not in str(error.value)
    with pytest.raises(Opened):
        open_run(run, data_source="digits", trust=True)
    with pytest.raises(UserError, match="csv:/etc/passwd"):
        open_run(run)

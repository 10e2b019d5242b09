"""A run is scored on data whose class folders were added, removed or renamed."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from finetune_jax import progress
from finetune_jax.base_variables import check_weights, load_variables
from finetune_jax.cli import load_config
from finetune_jax.config import default
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.pretrained.class_names import (
    compare_described,
    described_class_names,
    say_by_number,
)
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_config):
    """(run folder, folder of photographs) of a run that tells three colours apart."""
    folder = tmp_path_factory.mktemp("colours")
    for split in ("train", "validation", "test"):
        for name, colour in COLOURS.items():
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for i in range(4):
                noise = np.random.default_rng(i).integers(-20, 20, (16, 16, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    config = load_config(str(small_config))
    config.scheme = "full"
    config.data.source = f"folder:{folder / 'photos'}"
    config.data.train, config.data.validation, config.data.test = "train", "validation", "test"
    config.train.batch_size, config.train.steps = 12, 30
    config.checkpoint.every_steps = 30
    config.eval.batch_size = 4
    config.batch_norm = "track"
    result = train(open_setup(config), folder / "run")
    assert result["test"]["accuracy"] == 1
    return folder / "run", folder / "photos"


@pytest.fixture
def photos(trained):
    """The photographs, which are put back afterwards."""
    _, folder = trained
    copy = shutil.copytree(folder, folder.parent / "copy")
    yield folder
    shutil.rmtree(folder)
    copy.rename(folder)


def accuracy(trained):
    evaluator = open_run(trained[0])
    return evaluator.scores(evaluator.observe("test"))["accuracy"]


def test_a_missing_class_does_not_shift_the_others(trained, photos):
    for split in photos.iterdir():
        shutil.rmtree(split / "ant")
    assert accuracy(trained) == 1


def test_a_class_that_the_model_does_not_know_is_refused(trained, photos):
    for split in photos.iterdir():
        (split / "ant").rename(split / "zebra")
    with pytest.raises(
        UserError, match="does not know: zebra\n  data:  bee, cat, zebra\n  model: ant"
    ):
        accuracy(trained)
    for split in photos.iterdir():
        shutil.copytree(split / "zebra", split / "aardvark")
    with pytest.raises(UserError, match="does not know: aardvark, zebra"):
        accuracy(trained)


@pytest.mark.parametrize(
    ("described", "outcome"),
    [
        (["ant", "bee", "cat"], ""),
        (["Ant", "BEE", "cat"], ""),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ""),
        (["cat", "bee", "ant"], "refused"),
        (["n01", "n02", "n03"], "said"),
    ],
)
def test_names_in_the_config_beside_the_weights_are_compared(tmp_path, capsys, described, outcome):
    labels = {"id2label": {str(i): name for i, name in enumerate(described)}}
    (tmp_path / "config.json").write_text(json.dumps(labels))
    names = described_class_names(tmp_path)
    if outcome == "refused":
        with pytest.raises(UserError, match="data: ant, bee, cat\n  head: cat, bee, ant"):
            compare_described("x", names, ("ant", "bee", "cat"))
        return
    compare_described("x", names, ("ant", "bee", "cat"))
    assert ("describes other classes" in capsys.readouterr().err) == (outcome == "said")
    compare_described("x", names, ())


def test_a_kept_head_in_another_order_is_refused(trained, photos, small_config, tmp_path):
    run, *_ = trained
    config = load_config(str(small_config))
    config.data.source = f"folder:{photos}"
    config.data.train, config.data.validation, config.data.test = "train", "", ""
    shutil.copy(run / "artifact" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"id2label": {"0": "cat", "1": "ant", "2": "bee"}}')
    config.pretrained.path = str(tmp_path / "model.safetensors")
    config.pretrained.new_head = False
    with pytest.raises(UserError, match="head: cat, ant, bee"):
        load_variables(open_setup(config))


def test_a_head_that_is_kept_must_answer_the_classes_of_the_data(trained, photos, small_config):
    run, _ = trained

    def setup_of(**changes):
        config = load_config(str(small_config))
        config.data.source = f"folder:{photos}"
        config.data.train, config.data.validation, config.data.test = "train", "", ""
        config.pretrained.path, config.pretrained.new_head = str(run), False
        config.update_from_flattened_dict(changes)
        return open_setup(config)

    load_variables(setup_of())
    for name in ("train", "validation", "test"):
        (photos / name / "ant").rename(photos / name / "zebra")
    with pytest.raises(UserError, match="data: bee, cat, zebra\n  head: ant, bee, cat"):
        load_variables(setup_of())
    load_variables(setup_of(**{"pretrained.new_head": True}))
    with pytest.raises(UserError, match="or the same in another order"):
        load_variables(setup_of(**{"data.class_order": ("zebra", "bee", "cat")}))


@pytest.mark.parametrize("place", ["top", "pretrained_cfg"])
def test_timm_names_of_a_head_are_compared(tmp_path, place):
    names = {"label_names": ["bee", "ant"]}
    content = names if place == "top" else {place: names}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", **content}))
    with pytest.raises(UserError, match="the same in another order"):
        compare_described("x", described_class_names(tmp_path), ("ant", "bee"))


def test_a_head_whose_classes_no_file_names_is_said_to_be_read_by_number(tmp_path, capsys):
    labels = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    (tmp_path / "config.json").write_text(json.dumps(labels))
    assert described_class_names(tmp_path) == ()
    say_by_number(str(tmp_path), ("ant", "bee"))
    assert "by number: 0 ant, 1 bee" in capsys.readouterr().err
    say_by_number("y", ())
    assert not capsys.readouterr().err


@pytest.mark.parametrize("count", [10, 4])
def test_it_is_said_of_a_head_that_is_kept_alone(weights, capsys, monkeypatch, count):
    monkeypatch.setattr(progress, "_said", set())
    config = default()
    config.model.name = "resnet8_cifar"
    config.pretrained.path = str(weights)
    config.data.source = f"planned:40:{count}"
    check_weights(open_setup(config))
    assert ("is kept; its outputs are taken" in capsys.readouterr().err) == (count == 10)

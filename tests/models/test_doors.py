"""Models and name maps of other packages, named by import path."""

from __future__ import annotations

import numpy as np
import pytest
from other_package import Small
from safetensors.numpy import save_file

from finetune_jax import tree
from finetune_jax.cli import load_config
from finetune_jax.errors import UserError
from finetune_jax.models import build, entry_of, initial_variables
from finetune_jax.pretrained import load, save_as

MAP = "other_package:NAMES"


@pytest.fixture
def file(tmp_path):
    draw = np.random.default_rng(0)
    shapes = {
        "first.weight": (3, 3, 3, 8), "first.bias": (8,), "last.weight": (8, 5), "last.bias": (5,),
    }  # fmt: skip
    tensors = {name: draw.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    save_file(tensors, tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


def test_an_entry_of_another_package_is_a_model():
    assert entry_of("other_package:SMALL").image_size == 16
    assert build("other_package:SMALL", 4) == Small(4)


def test_a_class_of_another_package_is_a_model():
    entry = entry_of("other_package:Small")
    assert (entry.family, entry.classes, entry.dropout) == ("other_package:Small", 0, False)
    assert build("other_package:Small", 4, image_size=30) == Small(4)
    with pytest.raises(UserError, match=r"model\.remat: 'other_package:Small' has no field"):
        build("other_package:Small", 4, remat=True)
    with pytest.raises(UserError, match=r"model\.dropout: .* has no dropout"):
        build("other_package:Small", 4, dropout=0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other_package:Smal", "Did you mean 'Small'"),
        ("other_package:NoModel", "subclass of StagedModel, found the class NoModel"),
        ("other_package:NAMES", "expected Entry or type, found NameMap"),
        ("other_package:WithoutClasses", "without a default: width"),
        ("no_package:Small", "cannot import 'no_package'"),
        ("resnet20_cifer", "Did you mean 'resnet20_cifar'"),
    ],
)
def test_what_is_no_model_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        entry_of(name)


def test_a_name_map_of_another_package_reads_and_writes(file, tmp_path):
    model = build("other_package:SMALL", 5)
    init = initial_variables(model, 16)
    found, manifest = load(file, "small", init, model, name_map=MAP)
    assert manifest.origin == "other" and manifest.counts() == {"loaded": 4}
    save_as(tmp_path / "again.safetensors", found, "small", MAP)
    again, _ = load(tmp_path / "again.safetensors", "small", init, model, name_map=MAP)
    assert tree.fingerprint(again) == tree.fingerprint(found)


def test_a_chosen_origin_alone_is_tried(file):
    model = build("other_package:SMALL", 5)
    init = initial_variables(model, 16)
    with pytest.raises(UserError, match="known origins: native"):
        load(file, "small", init, model)
    with pytest.raises(UserError, match=r"pretrained\.name_map: .* no origin 'nativ'\. Did you"):
        load(file, "small", init, model, name_map="nativ")
    with pytest.raises(UserError, match=r"pretrained\.name_map: .*expected NameMap, found"):
        load(file, "small", init, model, name_map="other_package:SMALL")


def test_a_run_of_another_packages_model_leaves_an_artifact(file, small_config, tmp_path):
    from finetune_jax.artifact import Artifact
    from finetune_jax.setup import open_setup
    from finetune_jax.training.loop import train

    config = load_config(str(small_config))
    config.model.name, config.scheme = "other_package:SMALL", "linear_probe"
    config.pretrained.path, config.pretrained.name_map = str(file), MAP
    config.artifact.contents, config.train.steps = "delta", 2
    train(open_setup(config), tmp_path / "run")
    artifact = Artifact.load(tmp_path / "run", str(file))
    assert artifact.card["model"]["name"] == "other_package:SMALL"
    assert artifact.card["base"]["name_map"] == MAP
    assert artifact.model.model == Small(10)

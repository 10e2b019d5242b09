"""A package from outside adds a scheme, a model with its name map, a task, a loss and a source.

The package is `tests/example_package`; docs/extending.md explains it.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from safetensors.numpy import save_file

from finetune_jax import doors
from finetune_jax.artifact import Artifact
from finetune_jax.config import default
from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

EXAMPLE = ROOT / "tests" / "example_package"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts the package on the path, with the metadata that an installation leaves."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    folder = tmp_path / "site" / f"example_package-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (folder / "METADATA").write_text(metadata)
    (folder / "top_level.txt").write_text("example_package\n")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    doors._distributions.cache_clear()
    yield
    doors._distributions.cache_clear()


@pytest.fixture
def weights(tmp_path) -> Path:
    draw = np.random.default_rng(0)
    shapes = {
        "conv1.weight": (8, 3, 3, 3), "conv1.bias": (8,),
        "conv2.weight": (16, 8, 3, 3), "conv2.bias": (16,),
        "fc.weight": (10, 16), "fc.bias": (10,),
    }  # fmt: skip
    tensors = {k: draw.normal(size=s).astype(np.float32) / 4 for k, s in shapes.items()}
    save_file(tensors, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def config_of(weights: Path):
    config = default()
    config.scheme = "example_package.schemes:top(2) + head"
    config.model.name = "example_package.models:TINY"
    config.pretrained.path = str(weights)
    config.pretrained.name_map = "example_package.models:NAMES"
    config.pretrained.new_head = True
    config.task.name = "example_package.tasks:Grading"
    config.task.loss = "example_package.losses:hinge(margin=2.0)"
    config.data.source = "example_package.sources:open_shades:40"
    config.train.batch_size = 8
    config.train.steps = 2
    config.eval.batch_size = 8
    config.checkpoint.metric = "within_one"
    config.log.tensorboard = False
    return config


def test_one_run_uses_one_of_each(installed, weights, tmp_path):
    setup = open_setup(config_of(weights))
    assert {*setup.plan.trainable} == {"block_0/conv/kernel", "head/kernel", "head/bias"}
    result = train(setup, tmp_path / "run")
    assert result["audit"]["moved_leaves"] == 3
    assert 0 <= result["test"]["accuracy"] <= result["test"]["within_one"] <= 1

    artifact = Artifact.load(tmp_path / "run")
    with open_weights(str(weights)) as file:
        np.testing.assert_array_equal(
            artifact.variables["params"]["stem"]["conv"]["kernel"],
            file.read("conv1.weight").transpose(2, 3, 1, 0),
        )
    (answer,) = artifact.predict([np.full((16, 16, 3), 230, np.uint8)])
    assert {*answer["probabilities"]} == {"black", "dark", "light", "white"}

    card = json.loads((tmp_path / "run" / "artifact" / "artifact.json").read_text())
    found = {p["door"]: (p["package"], p["version"]) for p in card["providers"]}
    named = {"models:TINY", "models:NAMES", "schemes:top", "tasks:Grading", "losses:hinge"}
    assert {*found} == {f"example_package.{name}" for name in named}
    assert {*found.values()} == {("example-package", "1.2.3")}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scheme", "example_package.schemes:topp(2)", "Did you mean 'top'"),
        ("model.name", "example_package.models:TINI", "Did you mean 'TINY'"),
        ("task.name", "example_package.tasks:Gradin", "Did you mean 'Grading'"),
        ("task.loss", "example_package.losses:hing", "Did you mean 'hinge'"),
        ("data.source", "example_package.sources:open_shade", "Did you mean 'open_shades'"),
    ],
)
def test_a_wrong_name_gets_the_nearest_of_the_package(installed, weights, key, value, message):
    config = config_of(weights)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        open_setup(config)
    assert message in str(error.value)

"""An adapter of peft is in place in a run: its deltas in the plan, its head in the variables."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from exported_models import SMALL_VIT, hub_base, made

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.base_variables import load_variables
from finetune_jax.config import default
from finetune_jax.errors import UserError
from finetune_jax.export.changed import changed_leaves
from finetune_jax.export.formats import Model, format_of
from finetune_jax.schemes import FROZEN
from finetune_jax.setup import open_setup
from finetune_jax.tasks.classification import Classification

DIGITS = Classification(tuple("0123456789"))


@pytest.fixture(scope="module")
def model():
    scheme = "lora(rank=3, alpha=6) + head + norm"
    return made(SMALL_VIT, "timm", size=16, scheme=scheme, task=DIGITS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model) -> Path:
    """``hub``: the base whose changed leaves are other values; ``adapter``: the adapter."""
    folder = tmp_path_factory.mktemp("adapters")
    hub_base(model, folder / "hub")
    (folder / "adapter").mkdir()
    format_of("peft").write(model, folder / "adapter")
    return folder


def _config(folder, scheme):
    config = default()
    config.model.name, config.scheme = SMALL_VIT, scheme
    config.pretrained.path = str(folder / "hub" / "model.safetensors")
    config.pretrained.adapter = str(folder / "adapter")
    config.data.image_size, config.data.train = 16, "train[:32]"
    config.data.validation, config.data.test = "validation[:16]", "test[:16]"
    config.train.steps, config.train.batch_size, config.eval.batch_size = 4, 8, 16
    config.optimizer.learning_rate, config.log.tensorboard = 0.01, False
    config.checkpoint.every_steps = 2
    return config


def _pixels() -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(2).integers(0, 256, (3, 16, 16, 3), np.uint8)}


def test_an_adapter_loads_as_a_plan_with_its_deltas(folder, model):
    setup = open_setup(_config(folder, "deltas + head"))
    assert setup.plan.deltas == model.artifact.model.deltas
    groups = {leaf.path: leaf.group for leaf in setup.plan.leaves}
    assert groups["block_0/attn/query/lora_a"] == "deltas"
    assert groups["block_0/norm1/scale"] == FROZEN
    variables, manifest = load_variables(setup)
    expected = model.artifact.outputs(_pixels())
    ready = model.artifact.preprocess.device(_pixels())
    found = setup.plan.adapt(setup.model).apply(variables, ready)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert "params/head/kernel" in manifest["adapter"]["leaves"]
    assert "params/norm/scale" in manifest["adapter"]["leaves"]
    # The start values of the deltas are those of the adapter.
    params = setup.plan.add_deltas(variables["params"], jax.random.key(9))
    assert tree.fingerprint(params) == tree.fingerprint(model.artifact.variables["params"])


def test_deltas_without_an_adapter_are_refused(folder):
    config = _config(folder, "deltas + head")
    config.pretrained.adapter = ""
    with pytest.raises(UserError, match="no deltas are in place: set pretrained.adapter"):
        open_setup(config)
    config = _config(folder, "head")
    config.pretrained.adapter = str(folder / "nowhere")
    with pytest.raises(UserError, match="adapter_config.json"):
        open_setup(config)
    config = _config(folder, "head")
    config.pretrained.path = ""
    with pytest.raises(UserError, match="pretrained.path is empty"):
        open_setup(config)


@pytest.mark.slow
@pytest.mark.parametrize("contents", ["all", "delta"])
@pytest.mark.parametrize("scheme", ["head", "deltas + head"])
def test_a_run_over_an_adapter_resumes_and_leaves_an_artifact(folder, tmp_path, contents, scheme):
    from finetune_jax.training.loop import train

    config = _config(folder, scheme)
    config.artifact.contents, config.optimizer.schedule = contents, "constant"
    train(open_setup(config), tmp_path / "whole")
    base = config.pretrained.path if contents == "delta" else ""
    whole = Artifact.load(tmp_path / "whole", base)
    start, _ = load_variables(open_setup(config))
    moved = {
        path
        for path, leaf in tree.flatten(whole.variables["params"]).items()
        if not np.array_equal(leaf, tree.flatten(start["params"])[path])
    }
    assert any(path.startswith("head/") for path in moved)
    assert any("lora" in path for path in moved) == (scheme != "head")
    assert not any("norm" in path for path in moved)

    config.train.steps = 2
    train(open_setup(config), tmp_path / "parts")
    config.train.steps = 4
    train(open_setup(config), tmp_path / "parts")
    parts = Artifact.load(tmp_path / "parts", base)
    assert tree.fingerprint(parts.variables) == tree.fingerprint(whole.variables)
    assert json.loads((tmp_path / "whole" / "manifest.json").read_text())["adapter"]["leaves"]

    model = Model(whole, json.loads((tmp_path / "whole" / "config.json").read_text()), "timm")
    assert "params/norm/scale" in changed_leaves(model)
    (tmp_path / "again").mkdir()
    format_of("peft").write(model, tmp_path / "again")
    outputs = format_of("peft").opened(model, tmp_path / "again")(_pixels())
    np.testing.assert_allclose(outputs, whole.outputs(_pixels()), atol=1e-5)

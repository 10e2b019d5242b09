"""The dry run: what ``plan`` checks before it compiles anything, and the messages of failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_command
from safetensors import safe_open
from safetensors.numpy import save_file

from finetune_jax.api import load_config
from finetune_jax.base_variables import check_weights, load_variables
from finetune_jax.errors import UserError
from finetune_jax.models.resnet_cifar import ResNetCifar
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.setup import Setup, open_setup
from finetune_jax.training.dry_run import Check, dry_run


def setup_of(config: Path, **values: Any) -> Setup:
    return open_setup(load_config(str(config), {k.replace("__", "."): values[k] for k in values}))


def found(config: Path, about: str, **values: Any) -> list[Check]:
    return [check for check in dry_run(setup_of(config, **values)) if check.about == about]


def test_a_config_that_fits_has_no_problem_and_the_checks_say_what_is_there(small_config):
    checks = dry_run(setup_of(small_config))
    assert not [check.text for check in checks if check.problem]
    text = "\n".join(check.text for check in checks)
    assert "train 64, validation 40, test 50" in text
    assert "weights: 35 tensors loaded, 2 re-initialised (head)" in text
    assert "weights: new: params/head/bias, params/head/kernel: as requested" in text
    # last_k(1) trains the last block, with two kernels and two norms, and the head.
    assert (
        "audit: 8 leaves must move; 15 leaves and 10 statistics must keep every bit; 4 statistics "
        "may change"
    ) in text


def test_names_and_shapes_are_compared_without_a_value_or_a_digest(
    small_config, weights, tmp_path, monkeypatch
):
    loaded = load_variables(setup_of(small_config))[1]
    monkeypatch.setattr(Weights, "sha256", None)
    # Values that are read would be those of the file, which are not finite now.
    path = tmp_path / "infinite.safetensors"
    with safe_open(weights, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({name: np.full_like(x, np.inf) for name, x in tensors.items()}, path)
    setup = setup_of(small_config, pretrained__path=str(path))
    manifest = check_weights(setup)
    assert manifest is not None
    assert [*map(vars, manifest.rows)] == [
        {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        for row in loaded["rows"]
    ]


def test_the_message_about_the_wrong_model_names_the_model_that_fits(small_config):
    (check,) = found(small_config, "weights", pretrained__path="package:resnet20_cifar10")
    assert check.problem
    assert check.text.endswith("The file fits resnet20_cifar: --config.model.name=resnet20_cifar")
    assert len(check.text.splitlines()) < 15
    assert check.to_json()["flags"] == ["--config.model.name=resnet20_cifar"]
    assert found(small_config, "weights", pretrained__path="", pretrained__new_head=False)


def test_weights_that_are_not_here_are_no_problem_only_where_a_run_fetches_them(
    small_config, tmp_path
):
    (check,) = found(small_config, "weights", pretrained__path="hf:nobody/nothing@0123abc")
    assert not check.problem
    assert "pretrained inspect hf:nobody/nothing@0123abc" in check.text
    (check,) = found(small_config, "weights", pretrained__path=str(tmp_path / "none.pt"))
    assert check.problem
    assert check.to_json()["key"] == "pretrained.path"
    setup = setup_of(small_config, pretrained__path=str(tmp_path / "none.pt"))
    checks = dry_run(setup, with_data=False)
    assert not [check.text for check in checks if check.problem]


def test_splits_warmup_and_batches_are_said_with_keys_and_flags(small_config, monkeypatch):
    (check,) = found(small_config, "splits", data__test="tst")
    assert check.problem
    assert check.to_json()["key"] == "data.test"
    assert "--config.data.test=''" in check.to_json()["flags"]
    lines = [c.text for c in found(small_config, "length", optimizer__warmup_steps=50)]
    assert (
        "phase 1: its warm-up of 50 steps is cut to 5, because the phase has 6 steps; a tenth of "
        "them: --config.optimizer.warmup_steps=0"
    ) in lines
    monkeypatch.setattr("jax.device_count", lambda: 8)
    monkeypatch.setattr("finetune_jax.setup.make_mesh", lambda data, fsdp: None)
    with pytest.raises(UserError) as error:
        setup_of(small_config, train__batch_size=36, train__accumulate=2, eval__batch_size=20)
    assert "36 images do not divide over 8 devices x 2 micro-batches" in str(error.value)
    assert "--config.train.batch_size=32 or --config.train.batch_size=48" in str(error.value)
    assert "--config.eval.batch_size=16 or --config.eval.batch_size=24" in str(error.value)


def test_a_leaf_that_the_loss_does_not_depend_on_is_named(small_config, monkeypatch):
    monkeypatch.setattr(
        ResNetCifar, "pool", lambda self, x: jnp.zeros((x.shape[0], x.shape[3]), jnp.float32)
    )
    (check,) = [check for check in found(small_config, "audit") if check.problem]
    assert check.text.startswith(
        "scheme: no gradient reaches layer3_block0/conv1/kernel, layer3_block0/conv2/kernel"
    )
    assert "head/" not in check.text


@pytest.mark.slow
def test_plan_compiles_nothing_after_a_failed_check_and_prints_it_as_json(small_config):
    process = run_command(
        "plan", f"--config={small_config}", "--json", "--config.data.test=tst",
        "--config.pretrained.path=none.pt",
    )  # fmt: skip
    assert process.returncode == 2
    result = json.loads(process.stdout)
    assert [check["key"] for check in result["problems"]] == ["data.test", "pretrained.path"]
    assert "flops_step" not in result
    for check in result["problems"]:
        assert check["text"] in process.stderr

"""The shipped weights and published weights, scored by the evaluate command on real data."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import ONE_DEVICE, ROOT, run_command
from PIL import Image

SHIPPED = ROOT / "finetune_jax" / "weights" / "resnet20_cifar10.safetensors"
CARD = json.loads(SHIPPED.with_suffix(".json").read_text())


def test_the_card_is_of_this_file():
    assert CARD["sha256"] == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert CARD["test"]["n_scored"] == 10_000


def test_an_installed_package_holds_the_weights():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["finetune_jax"]
    found = {path for pattern in patterns for path in (ROOT / "finetune_jax").glob(pattern)}
    assert {SHIPPED, SHIPPED.with_suffix(".json")} <= found


def small_cifar10(folder: Path) -> None:
    """Prepares ``cifar10`` with 20 training and 10 test images of noise, as TFDS splits."""
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        with zipfile.ZipFile(images / f"cifar10_{split}_webp.zip", "w") as archive:
            for label, number in itertools.product(CARD["class_names"], range(count)):
                encoded = io.BytesIO()
                noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(encoded, "WEBP", lossless=True)
                archive.writestr(f"{split}/{label}/{number}.webp", encoded.getvalue())
    run_module("experiments.prepare_cifar10", f"--images={images}", f"--data_dir={folder}")


def run_module(name: str, *arguments: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ONE_DEVICE},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_a_card_holds_the_score_of_the_file_it_comes_with(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    small_cifar10(tmp_path)
    arguments = (
        f"--workdir={tmp_path / 'run'}",
        "--config=configs/pretrain_resnet20_cifar10.py:2",
        f"--config.data.data_dir={tmp_path}",
        "--config.data.train=train[:16]",
        "--config.train.batch_size=8",
        "--config.train.steps=2",
        "--config.eval.batch_size=10",
        "--config.log.tensorboard=False",
    )
    process = run_command("train", *arguments)
    assert process.returncode == 0, process.stderr
    output = tmp_path / "out" / "small.safetensors"
    ship = ("experiments.ship_resnet20", f"--workdir={tmp_path / 'run'}", f"--output={output}")
    with pytest.raises(AssertionError, match="cifar10"):
        run_module(*ship, f"--data_dir={tmp_path / 'images'}")
    assert not list(output.parent.iterdir())
    run_module(*ship, f"--data_dir={tmp_path}")
    assert sorted(p.name for p in output.parent.iterdir()) == ["small.json", "small.safetensors"]
    card = json.loads(output.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert "trained on 'train[:16]'" in card["data"]
    assert card["command"].endswith("configs/pretrain_resnet20_cifar10.py:2")
    assert card["config"]["data"]["data_dir"] == ""
    assert card.keys() <= CARD.keys()
    score = cifar10_score(20, output, str(tmp_path))
    assert {k: score[k] for k in card["test"]} == card["test"]
    # The run itself scored in half precision.
    own = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert own["loss"] != card["test"]["loss"]


def cifar10_score(depth: int, path: Path, data_dir: str | None = None) -> dict:
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    if not data_dir:
        pytest.skip("set TFDS_DATA_DIR to a folder with cifar10 prepared as array_record")
    process = run_command(
        "evaluate",
        f"--config=configs/eval_cifar10.py:{depth}",
        f"--config.pretrained.path={path}",
        f"--config.data.data_dir={data_dir}",
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.slow
def test_the_shipped_weights_score_what_their_card_says():
    score = cifar10_score(20, SHIPPED)
    assert score["n_scored"] == 10_000
    assert score["accuracy"] == CARD["test"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "file", "error"),
    [(20, "resnet20-12fca82f.th", 8.27), (32, "resnet32-d509ac18.th", 7.37)],
)
def test_published_resnets_score_their_published_error(depth, file, error):
    if not os.environ.get("FINETUNE_JAX_DATA"):
        pytest.skip("set FINETUNE_JAX_DATA to a folder with resnet_cifar10/*.th")
    path = Path(os.environ["FINETUNE_JAX_DATA"]) / "resnet_cifar10" / file
    score = cifar10_score(depth, path)
    assert score["n_scored"] == 10_000
    assert round(100 * (1 - score["accuracy"]), 2) == error

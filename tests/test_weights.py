"""The shipped weights and the published ones, scored by the evaluate command on real data."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from conftest import ROOT, run_command

SHIPPED = ROOT / "finetune_jax" / "weights" / "resnet20_cifar10.safetensors"
CARD = json.loads(SHIPPED.with_suffix(".json").read_text())


def test_the_card_is_of_this_file():
    assert CARD["sha256"] == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert CARD["test"]["n_scored"] == 10_000


def cifar10_score(depth: int, path: Path) -> dict:
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("set TFDS_DATA_DIR to a folder with cifar10 prepared as array_record")
    process = run_command(
        "evaluate",
        f"--config=configs/eval_cifar10.py:{depth}",
        f"--config.pretrained.path={path}",
        f"--config.data.data_dir={os.environ['TFDS_DATA_DIR']}",
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

"""Writes the files of this version that every later version must open.

  python tests/data/golden/write.py

The folder of the version then holds an interrupted run with its checkpoints (``run/``), the
artifact of the same run and its outputs for some images (``artifact/``, ``outputs.npy``), and a
ledger (``results.jsonl``). A folder that exists is not written again, so that the files stay those
of their version.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from ml_collections import ConfigDict

from finetune_jax import __version__
from finetune_jax.ablation.arm import make_arm
from finetune_jax.ablation.ledger import Ledger
from finetune_jax.ablation.records import trained_record
from finetune_jax.artifact import Artifact
from finetune_jax.config import default
from finetune_jax.pretrained.sources import resolve
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

FOLDER = Path(__file__).parent / __version__
BASE = "package:resnet20_cifar10"


class _Interrupted(Exception):
    """Ends a run as a signal would."""


def golden_config() -> ConfigDict:
    """A run of 6 steps of the head over weights that ship with the package."""
    config = default()
    config.scheme = "head"
    config.pretrained.path = BASE
    config.pretrained.new_head = True
    config.data.train = "train[:64]"
    config.data.validation = "validation[:40]"
    config.data.test = "test[:50]"
    config.data.image_size = 16
    config.train.batch_size = 16
    config.train.steps = 6
    config.eval.batch_size = 16
    config.checkpoint.every_steps = 2
    config.checkpoint.keep_last = 1
    config.optimizer.name = "adamw"
    config.optimizer.ema_decay = 0.5
    config.artifact.contents = "delta"
    config.log.every_steps = 1
    config.log.tensorboard = False
    return config


def images() -> np.ndarray:
    """Some images uint8[4, 16, 16, 3] that do not depend on a library's random numbers."""
    return (np.arange(4 * 16 * 16 * 3) * 7919 % 251).astype(np.uint8).reshape(4, 16, 16, 3)


def main() -> None:
    """The command."""
    if FOLDER.exists():
        sys.exit(f"{FOLDER} exists; it stays as its version wrote it")
    FOLDER.mkdir()
    setup = open_setup(golden_config())

    def interrupt(step: int, *_: object) -> None:
        if step == 5:
            raise _Interrupted

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(_Interrupted):
            train(setup, Path(folder) / "run", interrupt)
        result = train(setup, Path(folder) / "whole")
        shutil.copytree(Path(folder) / "run", FOLDER / "run")
        shutil.copytree(Path(folder) / "whole" / "artifact", FOLDER / "artifact")
    base = resolve(BASE)
    artifact = Artifact.load(FOLDER / "artifact", base=base)
    np.save(FOLDER / "outputs.npy", artifact.outputs({"image": images()}))
    arm = make_arm(golden_config(), "head", {}, {"optimizer.learning_rate": 0.1}, 0)
    ledger = Ledger(FOLDER / "results.jsonl")
    ledger.append(trained_record(arm, result))
    ledger.append(trained_record(make_arm(golden_config(), "bad", {}, {}, 1), {"error": "no such"}))


if __name__ == "__main__":
    main()

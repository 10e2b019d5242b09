"""Campaign: one file of the checkpoints of an interrupted run is damaged, and the run resumed.

  python -m experiments.faults.checkpoints --write

The run must end with the bits of the run without an interruption, or be refused in one message.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.faults.campaign import Trial, damage_one, main, outcome_of
from finetune_jax.config import default
from finetune_jax.files import read_json
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

_INTERRUPTED = 6


class _Interrupted(Exception):
    """Ends a run as a signal would."""


def tiny_config() -> ConfigDict:
    """The config of a run of 7 steps on digits, with a checkpoint after each step."""
    config = default()
    config.scheme = "last_k(1)"
    config.model.name = "resnet8_mlperf"
    config.data.train = "train[:64]"
    config.data.validation = "validation[:40]"
    config.data.test = "test[:50]"
    config.data.image_size = 16
    config.train.batch_size = 16
    config.train.steps = 7
    config.eval.batch_size = 16
    config.eval.every_epochs = 0.25
    config.checkpoint.every_steps = 1
    config.checkpoint.keep_best = 2
    config.optimizer.ema_decay = 0.5
    config.artifact.select = "best"
    config.log.every_steps = 1
    config.log.tensorboard = False
    return config


def make_trial(folder: Path) -> Trial:
    """Trains the run with and without an interruption.

    Args:
      folder: empty folder for all runs.

    Returns:
      The function of a trial.
    """

    def interrupt(step: int, split: str, _: dict[str, Any]) -> None:
        if step == _INTERRUPTED and split == "train":
            raise _Interrupted

    setup = open_setup(tiny_config())
    train(setup, folder / "whole")
    expected = _end(folder / "whole")
    with contextlib.suppress(_Interrupted):
        train(setup, folder / "interrupted", interrupt)

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        workdir = folder / "trial"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(folder / "interrupted", workdir)
        done = damage_one(workdir / "checkpoints", rng)

        def resume() -> bool:
            train(setup, workdir)
            return _end(workdir) == expected

        outcome, message = outcome_of(resume)
        return outcome, f"{done}: {message}"

    return trial


def _end(workdir: Path) -> tuple[str, str, int]:
    """Fingerprint of the artifact, lines of the metrics, and the step that was selected."""
    return (
        read_json(workdir / "artifact" / "artifact.json")["fingerprint"],
        (workdir / "metrics.jsonl").read_text(),
        read_json(workdir / "result.json")["selected_step"],
    )


def _make_trial() -> Trial:
    folder = tempfile.mkdtemp(prefix="faults_checkpoints_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_trial(Path(folder))


if __name__ == "__main__":
    main("checkpoints", _make_trial, 300)

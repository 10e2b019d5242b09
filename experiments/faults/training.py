"""A small run for campaigns, trained many times without compiling its programs again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from finetune_jax.config import default
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import drive, steps
from finetune_jax.training.metrics_writer import OnMetrics
from finetune_jax.training.shared import Cache, SharedCaches


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
    config.checkpoint.every_steps = 1
    config.log.every_steps = 1
    config.log.tensorboard = False
    return config


def best_config() -> ConfigDict:
    """As `tiny_config`, with an average of the weights, and the best of them in the artifact."""
    config = tiny_config()
    config.eval.every_epochs = 0.25
    config.checkpoint.keep_best = 2
    config.optimizer.ema_decay = 0.5
    config.artifact.select = "best"
    return config


def make_train(config: ConfigDict) -> Callable[[Path, OnMetrics | None], None]:
    """Returns `loop.train` for one config, as a function of (workdir, on_metrics).

    Compiled programs and decoded data are shared by all calls; activations are not.
    """
    setup, caches = open_setup(config), SharedCaches()

    def train(workdir: Path, on_metrics: OnMetrics | None = None) -> None:
        own = dataclasses.replace(caches, activations=Cache())
        drive(steps(setup, workdir, own, on_metrics), setup.mesh)

    return train

"""Measures the speed of the frozen-prefix cache and of fused arms, as ratios within one process.

Commands:
  python -m experiments.speed --what=prefix    # an epoch without a cache over an epoch with a cache
  python -m experiments.speed --what=arms      # arms in lockstep over one arm, and over single runs

The data are the embedded digits and the weights are random, because the times do not depend on
values. Each ratio is the median of --repeats measurements.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from finetune_jax.config import default
from finetune_jax.mesh import put_batch
from finetune_jax.progress import muted
from finetune_jax.setup import Setup, open_setup
from finetune_jax.training.arms import run_arms
from finetune_jax.training.loop import steps, train
from finetune_jax.training.shared import SharedCaches

_WHAT = flags.DEFINE_enum("what", "prefix", ["prefix", "arms"], "What to measure.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Number of measurements of each ratio.", lower_bound=1
)


def config_of(model: str, size: int, scheme: str, **changes: Any) -> ConfigDict:
    """Returns a config on digits, with some keys changed."""
    config = default()
    config.model.name, config.data.image_size = model, size
    config.scheme = scheme
    config.data.test = ""
    config.log.tensorboard = False
    config.log.every_steps = 1000
    config.update_from_flattened_dict(changes)
    return config


def epoch_seconds(scheme: str, cached: bool) -> float:
    """Returns the seconds of the second epoch of ViT-S/16 at 224 pixels over 64 images."""
    config = config_of(
        "vit_s16", 224, scheme,
        **{
            "data.train": "train[:64]", "data.validation": "validation[:16]",
            "train.batch_size": 16, "train.epochs": 2.0, "eval.batch_size": 16,
            "eval.every_epochs": 2.0, "prefix_cache.enabled": cached,
        },
    )  # fmt: skip
    setup = open_setup(config)
    times = []
    with tempfile.TemporaryDirectory() as folder, muted():
        run = steps(setup, Path(folder) / "run", SharedCaches())
        request = next(run)
        while request is not None:
            began = time.perf_counter()
            batch = put_batch(request.batch, setup.mesh)
            value = jax.block_until_ready(request.step(request.state, request.frozen, batch))
            times.append(time.perf_counter() - began)
            request = run.send(value)
        run.close()
    return sum(times[4:])


def prefix() -> None:
    """Prints the time of an epoch without a cache over the time of an epoch with a cache."""
    for scheme in ("linear_probe", "last_k(2)"):
        ratios = [
            epoch_seconds(scheme, False) / epoch_seconds(scheme, True)
            for _ in range(_REPEATS.value)
        ]
        print(
            f"{scheme}: an uncached epoch takes {statistics.median(ratios):.1f} times a cached "
            f"one ({', '.join(f'{r:.1f}' for r in ratios)})"
        )


def wall(function: Callable[[Path], object]) -> float:
    """Returns the seconds of a call of `function`, which gets an empty folder."""
    with tempfile.TemporaryDirectory() as folder, muted():
        began = time.perf_counter()
        function(Path(folder))
        return time.perf_counter() - began


def arms() -> None:
    """Prints the time of fused arms over the time of one arm, or of all arms one after another."""

    def grid(
        model: str, size: int, scheme: str, rates: Sequence[float], seeds: int, **changes: Any
    ) -> list[Setup]:
        return [
            open_setup(
                config_of(
                    model, size, scheme,
                    **{"optimizer.learning_rate": rate, "seed": seed, **changes},
                )
            )
            for seed in range(seeds)
            for rate in rates
        ]  # fmt: skip

    def together(setups: list[Setup], folder: Path) -> None:
        run_arms(setups, [folder / str(i) for i in range(len(setups))])

    def in_turn(setups: list[Setup], folder: Path) -> None:
        for i, setup in enumerate(setups):
            train(setup, folder / str(i))

    def ratios(group: list[Setup], others: list[Setup]) -> list[float]:
        found = []
        for _ in range(_REPEATS.value):
            one = wall(lambda folder: in_turn(others, folder))
            found.append(wall(lambda folder: together(group, folder)) / one)
        return found

    short = {"train.epochs": 10.0, "eval.every_epochs": 10.0, "train.batch_size": 64}
    probes = grid("resnet20_cifar", 32, "linear_probe", (0.03, 0.1, 0.3, 1.0), 4, **short)
    found = ratios(probes, probes[:1])
    print(
        f"resnet20_cifar, 16 linear-probe arms: {statistics.median(found):.2f} times one arm "
        f"({', '.join(f'{r:.2f}' for r in found)})"
    )
    for model, size in (("resnet20_cifar", 32), ("vit_ti16", 64)):
        brief = {
            "train.epochs": 2.0, "eval.every_epochs": 2.0, "train.batch_size": 64,
            "data.train": "train[:640]", "data.validation": "validation[:128]",
            "eval.batch_size": 128, "optimizer.name": "adamw",
        }  # fmt: skip
        low_rank = grid(model, size, "lora(rank=4) + head", (1e-4, 3e-4, 1e-3, 3e-3), 2, **brief)
        found = ratios(low_rank, low_rank)
        print(
            f"{model}, 8 LoRA arms: {statistics.median(found):.2f} times 8 runs in turn "
            f"({', '.join(f'{r:.2f}' for r in found)})"
        )


def main(argv: list[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    prefix() if _WHAT.value == "prefix" else arms()


if __name__ == "__main__":
    app.run(main)

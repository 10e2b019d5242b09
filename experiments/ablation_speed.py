"""Times an ablation as one command, against its arms run one by one and against a PyTorch loop.

Commands (the PyTorch loop needs torch and timm from requirements-reference.txt):
  python -m experiments.ablation_speed --case=grid --ways=ablate,commands,torch
  python -m experiments.ablation_speed --case=lora_vit --ways=ablate,commands

All times are wall-clock times of whole commands, imports and compilation included. `ablate` also
scores the chosen arms on test; the other ways do not. `commands` runs `python -m
finetune_jax.train` for each arm. `torch` is one process with timm's model of the same size, frozen
parameters without gradients, and the same batches, steps, optimizer, schedule and evaluations,
without a cache. The cases are in configs/ablations/speed.py.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from finetune_jax.ablation.arm import make_arm
from finetune_jax.ablation.study import row_specs
from finetune_jax.ablation.study_file import load_study
from finetune_jax.cli import load_config

_CASE = flags.DEFINE_enum(
    "case", "grid", ["grid", "blocks", "lora_vit", "lora_resnet"], "Which arms."
)
_WAYS = flags.DEFINE_list("ways", ["ablate", "commands"], "ablate, commands, torch.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 1, "Measurements of each way; the median counts.", lower_bound=1
)

CONFIG = "configs/ablations/speed.py"


def arms(case: str) -> list[tuple[str, float, int]]:
    """Scheme, learning rate and seed of every arm."""
    path = f"{CONFIG}:{case}"
    study, base = load_study(path), load_config(path)
    found = []
    for row in row_specs(study, base):
        for point, seed in itertools.product(row.points, study.tune_seeds):
            config = make_arm(base, row.name, row.overrides, point, seed).config
            found.append((config["scheme"], config["optimizer"]["learning_rate"], seed))
    return found


def write_weights(case: str, path: Path) -> list[str]:
    """Writes random weights with timm's names; returns the override with their path."""
    from finetune_jax.models import build, entry_of, initial_variables
    from finetune_jax.pretrained import save_as

    config = load_config(f"{CONFIG}:{case}")
    if not config.pretrained.new_head:
        return []
    name, size = config.model.name, config.data.image_size
    model = build(name, 10, image_size=size)
    save_as(path, initial_variables(model, size), entry_of(name).family, "timm", model.sizes)
    return [f"--config.pretrained.path={path}"]


def ablate(case: str, weights: list[str], folder: Path) -> None:
    """Runs all arms as one command."""
    config = f"--config={CONFIG}:{case}"
    _run("-m", "finetune_jax.ablate", config, f"--workdir={folder / 'runs'}", *weights)


def commands(case: str, weights: list[str], folder: Path) -> None:
    """Runs one command for each arm."""
    for number, (scheme, rate, seed) in enumerate(arms(case)):
        _run(
            "-m", "finetune_jax.train", f"--config={CONFIG}:{case}",
            f"--workdir={folder / str(number)}", f"--config.scheme={scheme}",
            f"--config.optimizer.learning_rate={rate}", f"--config.seed={seed}",
            "--config.data.test=", *weights,
        )  # fmt: skip


def torch(case: str, weights: list[str], folder: Path) -> None:
    """Runs the PyTorch loop in a separate process."""
    del folder
    path = weights[0].split("=")[1]
    call = f"torch_loop({case!r}, {path!r})"
    _run("-c", f"from experiments.ablation_speed import torch_loop; {call}")


def torch_loop(case: str, path: str) -> None:
    """Trains every arm in turn from a weight file; only for the cases ``grid`` and ``blocks``."""
    import numpy as np
    import timm
    import torch as t
    from safetensors.torch import load_file

    from finetune_jax.setup import open_setup

    setup = open_setup(load_config(f"{CONFIG}:{case}"))
    config = setup.config

    def split(name: str) -> tuple[t.Tensor, t.Tensor]:
        examples = setup.source.read(config.data[name])
        rows = [setup.encode(examples[i]) for i in range(len(examples))]
        images = np.stack([row["image"] for row in rows]).transpose(0, 3, 1, 2)
        labels = t.tensor([int(row["label"]) for row in rows])
        return t.tensor(images / 127.5 - 1, dtype=t.float32), labels

    (x, y), (vx, vy) = split("train"), split("validation")
    values = load_file(path)
    per_epoch = len(x) // config.train.batch_size
    total = round(config.train.epochs * per_epoch)
    for scheme, rate, seed in arms(case):
        t.manual_seed(seed)
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
        model.load_state_dict(values)
        model.head.reset_parameters()
        trained = {
            "linear_probe": [model.head],
            "stages('norm', 'head')": [model.norm, model.head],
            "last_k(1)": [*model.blocks[-1:], model.norm, model.head],
            "last_k(2)": [*model.blocks[-2:], model.norm, model.head],
        }[scheme]
        for parameter in model.parameters():
            parameter.requires_grad = False
        chosen = [p for part in trained for p in part.parameters()]
        for parameter in chosen:
            parameter.requires_grad = True
        optimizer = t.optim.SGD(chosen, rate, config.optimizer.momentum)
        schedule = t.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total))
        )
        order = t.Generator().manual_seed(seed)
        for _ in range(round(config.train.epochs)):
            model.train()
            for rows in t.randperm(len(x), generator=order).split(config.train.batch_size):
                optimizer.zero_grad()
                t.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
        model.eval()
        with t.no_grad():
            right = [
                (model(a).argmax(1) == b).sum()
                for a, b in zip(
                    vx.split(config.eval.batch_size), vy.split(config.eval.batch_size),
                    strict=True,
                )
            ]  # fmt: skip
        print(scheme, rate, seed, f"{sum(right) / len(vx):.3f}", flush=True)


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-2000:]}")


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    ways: dict[str, Any] = {"ablate": ablate, "commands": commands, "torch": torch}
    times: dict[str, list[float]] = {way: [] for way in _WAYS.value}
    for _ in range(_REPEATS.value):
        for way in _WAYS.value:
            with tempfile.TemporaryDirectory() as folder:
                weights = write_weights(_CASE.value, Path(folder) / "weights.safetensors")
                began = time.perf_counter()
                ways[way](_CASE.value, weights, Path(folder))
                times[way].append(time.perf_counter() - began)
    medians = {way: statistics.median(found) for way, found in times.items()}
    first = _WAYS.value[0]
    print(f"{_CASE.value}: {len(arms(_CASE.value))} arms; {first} takes 1.00")
    for way in _WAYS.value[1:]:
        print(f"{way}: {medians[way] / medians[first]:.2f} times as long as {first}")
    print(json.dumps({way: [round(s, 1) for s in found] for way, found in times.items()}))


if __name__ == "__main__":
    app.run(main)

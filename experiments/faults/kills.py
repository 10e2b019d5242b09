"""Campaign: a run is killed at a random moment with SIGKILL and resumed until it has finished.

  python -m experiments.faults.kills --write

The kinds of runs are a ResNet that tracks BatchNorm statistics, a ViT with a probe before LoRA, a
solved head, a run whose data workers come and go, and an ablation. Trial N is of kind N modulo 5.
Every run must end with the fingerprint of the run that nobody killed.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.faults.campaign import HANG, IDENTICAL, REFUSED, TRACEBACK, WRONG, Trial, main
from finetune_jax.files import read_json

_LIMIT = 600  # seconds
_KILLS = 3  # per trial at most
_COMMON = (
    "--config=quickstart", "--config.mesh.cpu_devices=0", "--config.data.train=train[:256]",
    "--config.data.test=",
    "--config.data.validation=validation[:64]", "--config.train.batch_size=16",
    "--config.train.steps=40", "--config.checkpoint.every_steps=1",
    "--config.log.tensorboard=False",
)  # fmt: skip
_SMALL_VIT = (
    "--config.pretrained.path=", "--config.model.name=vit_ti16",
    "--config.data.image_size=32",
)  # fmt: skip
_STUDY = """
from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study
from finetune_jax.configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.mesh.cpu_devices = 0
    config.log.tensorboard = False
    config.train.steps = 20
    config.data.test = ""
    return config

def get_study():
    return Study(
        rows=over("scheme", ["linear_probe", "last_k(1)"]),
        tune=over("optimizer.learning_rate", [0.03, 0.1]),
        seeds=(0,),
        tune_seeds=(0,),
    )
"""
KINDS: dict[str, tuple[str, ...]] = {
    "batch_norm": ("--config.scheme=last_k(1)", "--config.batch_norm=track"),
    "two_phases": ("--config.scheme=linear_probe >> lora(rank=2)", *_SMALL_VIT),
    "solved": ("--config.scheme=linear_probe + phase(solve='ridge') >> last_k(1)",),
    "workers": ("--config.scheme=last_k(1)", "--config.data.cache_bytes=0"),
    "ablation": (),
}


def command(kind: str, workdir: Path, workers: int) -> list[str]:
    """Returns the command of a run; `workers` is the number of data workers of kind workers."""
    python = [sys.executable, "-m"]
    if kind == "ablation":
        study = workdir.with_name("study.py")
        study.write_text(_STUDY)
        return [*python, "finetune_jax.ablate", f"--config={study}", f"--workdir={workdir}"]
    moving = [f"--config.data.workers={workers}"] if kind == "workers" else []
    options = (*_COMMON, *KINDS[kind], *moving)
    return [*python, "finetune_jax.train", *options, f"--workdir={workdir}"]


def make_trial(folder: Path, kinds: Sequence[str] = tuple(KINDS)) -> Trial:
    """Returns the function of a trial, which runs each kind once without a kill when first asked.

    Args:
      folder: empty folder for all runs.
      kinds: kinds of runs, see `KINDS`.
    """
    whole: dict[str, tuple[dict[str, str], float]] = {}
    number = 0

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        nonlocal number
        kind = kinds[number % len(kinds)]
        number += 1
        if kind not in whole:
            began = time.monotonic()
            status, text = _run(command(kind, folder / kind, 2), _LIMIT)
            if status:
                raise RuntimeError(f"{kind} without a kill: status {status}: {text[-2000:]}")
            whole[kind] = _fingerprints(folder / kind), time.monotonic() - began
        expected, seconds = whole[kind]
        workdir = folder / "trial"
        shutil.rmtree(workdir, ignore_errors=True)
        moments = []
        for _ in range(_KILLS):
            moments.append(float(rng.uniform(0.1, 1)) * seconds)
            workers = int(rng.integers(3))
            if _run(command(kind, workdir, workers), moments[-1])[0] == 0:
                break
        status, text = _run(command(kind, workdir, int(rng.integers(2))), _LIMIT)
        what = f"{kind}, killed after {', '.join(f'{m:.1f}' for m in moments)} s: {text[-500:]}"
        if status == -signal.SIGKILL:
            return HANG, what
        if "Traceback" in text:
            return TRACEBACK, what
        if status:
            return REFUSED, what
        return (IDENTICAL if _fingerprints(workdir) == expected else WRONG), what

    return trial


def _run(command: list[str], limit: float) -> tuple[int, str]:
    """Status and standard error of a command, which is killed with its children after a time."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, text = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, text = process.communicate()
    return process.returncode, text


def _fingerprints(folder: Path) -> dict[str, str]:
    """Fingerprint of each artifact under a folder, by its place."""
    cards = sorted(folder.rglob("artifact/artifact.json"))
    return {str(card.relative_to(folder)): read_json(card)["fingerprint"] for card in cards}


def _make_trial() -> Trial:
    folder = tempfile.mkdtemp(prefix="faults_kills_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_trial(Path(folder))


if __name__ == "__main__":
    main("kills", _make_trial, 200)

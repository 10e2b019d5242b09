"""Campaign: a run is killed (SIGKILL) at a random moment, once or twice, and continued to its end.

  python -m experiments.faults.kills --kind=batch_norm --write

The run must end with the bits of the run that nobody killed. Kinds of runs: ``batch_norm``
(a ResNet whose statistics are tracked), ``two_phases`` (a ViT: linear probe, then LoRA),
``solved_head``, ``workers`` (batches read by processes, whose number changes between the parts of
a run) and ``ablation``.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from experiments.faults.campaign import HANG, IDENTICAL, REFUSED, TRACEBACK, WRONG, Trial, main
from experiments.faults.training import tiny_config
from finetune_jax.ablation.axes import over
from finetune_jax.ablation.conduct import Conductor
from finetune_jax.ablation.launch.local import LocalLauncher
from finetune_jax.ablation.study import Study
from finetune_jax.errors import UserError
from finetune_jax.files import read_json
from finetune_jax.models import Entry, Inputs
from finetune_jax.models.vit import ViT
from finetune_jax.setup import open_setup
from finetune_jax.training import arm_group
from finetune_jax.training.loop import train
from finetune_jax.training.metrics_writer import rows_without_times

KINDS = ("batch_norm", "two_phases", "solved_head", "workers", "ablation")
TINY_VIT = Entry(
    "vit",
    functools.partial(ViT, width=32, depth=2, heads=2, patch=4),
    inputs=Inputs(16, crop=0),
    patch=4,
    dropout=True,
)

_LONGEST = 300.0  # seconds after which a run hangs
_POLL_SECONDS = 0.002


def config_of(kind: str, workers: int = 0) -> ConfigDict:
    """The config of a kind of runs: 12 steps on digits, with a checkpoint after each step.

    Args:
      kind: one of `KINDS`.
      workers: number of processes that read batches.
    """
    config = tiny_config()
    config.model.name, config.train.steps = "resnet8_cifar", 12
    if kind == "batch_norm":
        config.scheme, config.batch_norm = "full", "track"
        config.optimizer.ema_decay = 0.9
    elif kind == "two_phases":
        config.model.name = "experiments.faults.kills:TINY_VIT"
        config.scheme = "linear_probe + phase(steps=5) >> lora(rank=2) + head"
        config.optimizer.name = "adamw"
    elif kind == "solved_head":
        config.scheme = "linear_probe + phase(solve='ridge') >> last_k(1)"
    elif kind == "workers":
        config.data.workers, config.data.cache_bytes = workers, 0
        config.prefix_cache.enabled = False
        config.data.augment = "random_crop(pad=2) + flip"
    return config


def make_trial(kind: str, folder: Path) -> Trial:
    """Runs a kind of runs without a kill.

    Args:
      kind: one of `KINDS`.
      folder: empty folder for all runs.

    Returns:
      The function of a trial.
    """
    began = time.monotonic()
    status = _wait(_start(kind, folder / "whole", 0))
    duration = time.monotonic() - began
    if status != 0:
        raise RuntimeError(f"the run without a kill ended with {status}: {_log(folder / 'whole')}")
    expected = _end(kind, folder / "whole")

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        workdir = folder / "trial"
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir()
        # Another run may measure other times, and choose other programs, which round differently.
        for record in (folder / "whole").glob(f"runs/*/{arm_group.FILE}"):
            place = workdir / record.relative_to(folder / "whole")
            place.parent.mkdir(parents=True)
            shutil.copy(record, place)
        done = []
        for _ in range(int(rng.integers(1, 3))):
            process = _start(kind, workdir, int(rng.choice([0, 2])))
            done.append(_kill(process, kind, workdir, duration, rng))
        status = _wait(_start(kind, workdir, int(rng.choice([0, 1]))))
        text = "; ".join(done)
        if status is None:
            return HANG, text
        if status:
            return (REFUSED if status == 2 else TRACEBACK), f"{text}: {_log(workdir)}"
        return (IDENTICAL if _end(kind, workdir) == expected else WRONG), text

    return trial


def _start(kind: str, workdir: Path, workers: int) -> int:
    """Starts a run in a process group of its own; returns its process number."""
    workdir.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # A copy of this process, which has imported everything and has used no device.
    if process := os.fork():
        return process
    _run(kind, workdir, workers)


def _run(kind: str, workdir: Path, workers: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        log = os.open(workdir / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.set_verbosity(logging.WARNING)
        if kind == "ablation":
            study = Study(
                rows=over("scheme", ["linear_probe", "last_k(1)"]),
                tune=over("optimizer.learning_rate", [0.01, 0.1]),
                search="grid(extend=0)",
                seeds=(0, 1),
                tune_seeds=(0,),
            )
            Conductor(study, config_of(kind), workdir, LocalLauncher()).run({})
        else:
            train(open_setup(config_of(kind, workers)), workdir)
        status = 0
    except UserError as error:
        print(f"error: {error}", flush=True)
        status = 2
    except BaseException:  # noqa: BLE001  the process must not go on as a copy of its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _kill(process: int, kind: str, workdir: Path, duration: float, rng: np.random.Generator) -> str:
    """Kills a run at a random moment; returns when.

    Half of the moments are any time of a run, the others are close to a checkpoint being written.
    """
    began = time.monotonic()
    if rng.random() < 0.5:
        until, step = rng.uniform(0, duration), 0
    else:
        until, step = _LONGEST, int(rng.integers(1, 12))
    delay = rng.uniform(0, 0.3)
    ended = False
    while time.monotonic() - began < until and not ended:
        if step and _reached(kind, workdir, step):
            time.sleep(delay)
            break
        ended = os.waitpid(process, os.WNOHANG)[0] == process
        time.sleep(_POLL_SECONDS)
    when = f"after {time.monotonic() - began:.2f} s"
    if ended:
        return f"ended {when}"
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return f"killed {when}" + f" at step {step}" * bool(step)


def _reached(kind: str, workdir: Path, step: int) -> bool:
    folders = "runs/*/checkpoints/*" if kind == "ablation" else "checkpoints/*"
    names = (path.name for path in workdir.glob(folders))
    return any(name.isdigit() and int(name) >= step for name in names)


def _wait(process: int) -> int | None:
    """The exit status of a run; None for a run that hangs, which is killed."""
    began = time.monotonic()
    while time.monotonic() - began < _LONGEST:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def _log(workdir: Path) -> str:
    return (workdir / "log.txt").read_text(errors="replace")[-600:]


def _end(kind: str, workdir: Path) -> Any:
    """The results that must not depend on kills: fingerprints, metrics, records of the ledger."""
    if kind != "ablation":
        return _end_of_run(workdir)
    lines = (workdir / "results.jsonl").read_text().splitlines()
    records = {}
    for record in map(json.loads, lines):
        scores = {key: record.get(key) for key in ("validation", "test", "others")}
        records[record["key"], record["what"]] = scores
    runs = {path.name: _end_of_run(path) for path in sorted((workdir / "runs").iterdir())}
    return records, runs


def _end_of_run(workdir: Path) -> tuple[str, str]:
    card = read_json(workdir / "artifact" / "artifact.json")
    return card["fingerprint"], repr(rows_without_times(workdir / "metrics.jsonl"))


def _make_trial(kind: str) -> Trial:
    folder = tempfile.mkdtemp(prefix="faults_kills_")
    # Copies that were killed do not reach this line.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_trial(kind, Path(folder))


if __name__ == "__main__":
    _KIND = flags.DEFINE_enum("kind", "batch_norm", KINDS, "Kind of the runs.")
    main(lambda: f"kills_{_KIND.value}", lambda: _make_trial(_KIND.value), 40)

"""An hour of small training in one process: memory, threads and open files must not grow.

  python -m experiments.faults.soak [--minutes=60] [--save_every=10] [--steps=200] [--write]

One run trains for the whole time, with a checkpoint at every tenth step and an evaluation at every
twentieth, with TensorBoard and probes. With ``--steps``, runs of so many steps and of different
schemes are trained one after another instead, each into a fresh folder and with its artifact. A
line per minute has the memory, the threads and the open files. ``rss_mib`` is the resident memory;
``own_mib`` is the memory that the process allocated, swapped pages included, and leaves out pages
of files, which the system drops when others need memory. At the end the slope of both after the
warm-up is fitted by least squares. The command ends with status 1 if the slope of ``own_mib`` is
above 1 MiB per minute, or if the second half has more threads or open files than the first half.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags

from finetune_jax import cli
from finetune_jax.config import default
from finetune_jax.files import write_json
from finetune_jax.progress import muted
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

MOST_MIB_PER_MINUTE = 1.0
_RESULTS = Path(__file__).parent.parent / "results" / "faults"

_NO_END = 1_000_000  # a number of steps that no run reaches in the time
_ONE = 2  # number of the run that trains for the whole time: ``full``
_SCHEMES = ("linear_probe", "last_k(1)", "full", "lora(rank=2) + head", "lp_ft")


def config_of(number: int, steps: int, save_every: int) -> ml_collections.ConfigDict:
    """The config of a run of some steps, with 4 steps per epoch; the schemes take turns."""
    config = default()
    config.seed = number
    config.scheme = _SCHEMES[number % len(_SCHEMES)]
    config.model.name = "resnet20_cifar"
    config.data.image_size = 16
    config.data.train, config.data.validation = "train[:64]", "validation[:32]"
    config.data.test = "test[:32]"
    config.train.batch_size = config.eval.batch_size = 16
    config.train.steps, config.eval.every_epochs = steps, save_every / 2
    config.eval.probes = "knn(3)"
    config.optimizer.ema_decay = 0.9
    config.checkpoint.every_steps, config.log.every_steps = save_every, 2
    return config


def measure() -> dict[str, float]:
    """Memory in MiB, threads of the process and of Python among them, and open files."""
    status = Path("/proc/self/status").read_text()
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return {
        "rss_mib": int(values["VmRSS"].split()[0]) / 1024,
        "own_mib": sum(int(values[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 1024,
        "threads": int(values["Threads"]),
        "python_threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


class _TimeIsOver(Exception):
    """Ends the one long run."""


def soak(
    minutes: float, warm_up: float, every: float, steps: int, save_every: int
) -> dict[str, Any]:
    """Trains for some minutes; returns the lines and what `verdict` finds in them.

    Args:
      minutes: length of the test.
      warm_up: share of the time that is not fitted, in [0, 1).
      every: seconds between two lines.
      steps: steps of each run; 0 for one run that trains for the whole time.
      save_every: steps between two checkpoints; an evaluation comes after twice as many.
    """
    runs = 0
    rows: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    began = time.monotonic()

    def sample(step: int, split: str, metrics: dict[str, Any]) -> None:
        """Adds a line if it is time, while a run trains."""
        del split, metrics
        passed = time.monotonic() - began
        if passed >= every * len(rows):
            gc.collect()
            rows.append({"minute": passed / 60, "runs": runs, "step": step, **measure()})
            print("  ".join(f"{k} {v:.6g}" for k, v in rows[-1].items()), flush=True)
        if not steps and passed >= 60 * minutes:
            raise _TimeIsOver

    try:
        while time.monotonic() - began < 60 * minutes:
            config = config_of(runs if steps else _ONE, steps or _NO_END, save_every)
            with muted(), contextlib.suppress(_TimeIsOver):
                train(open_setup(config), folder / str(runs), sample)
            shutil.rmtree(folder / str(runs))
            runs += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = {"minutes": minutes, "runs": runs, "steps": rows[-1]["step"], "save_every": save_every}
    return {**report, **verdict(rows, warm_up * minutes), "rows": rows}


def verdict(rows: Sequence[dict[str, Any]], warm_up: float) -> dict[str, Any]:
    """Slopes of the memory in MiB per minute, and by how much threads and files grew.

    Args:
      rows: results of `measure` with ``minute``.
      warm_up: minutes at the start that are left out.
    """
    kept = [row for row in rows if row["minute"] >= warm_up]
    minutes = [row["minute"] for row in kept]
    slopes = {
        name: round(float(np.polyfit(minutes, [row[name] for row in kept], 1)[0]), 3)
        for name in ("rss_mib", "own_mib")
    }
    # A run has more threads and files while it writes a checkpoint, so the maxima of the two
    # halves are compared.
    half = len(kept) // 2
    growth = {
        name: max(row[name] for row in kept[half:]) - max(row[name] for row in kept[:half])
        for name in ("threads", "files")
    }
    good = slopes["own_mib"] <= MOST_MIB_PER_MINUTE and max(growth.values()) <= 0
    return {"mib_per_minute": slopes, "more": growth, "good": good}


def main() -> None:
    """Defines the flags and runs the command."""
    # Defined here, because another campaign in the same process has flags of the same names.
    minutes = flags.DEFINE_float("minutes", 60.0, "Length of the test.", lower_bound=0.1)
    warm_up = flags.DEFINE_float("warm_up", 0.25, "Share of the time that is not fitted.")
    every = flags.DEFINE_float("every", 60.0, "Seconds between two lines.", lower_bound=1.0)
    steps = flags.DEFINE_integer("steps", 0, "Steps of each run; 0: one run.", lower_bound=0)
    save = flags.DEFINE_integer("save_every", 10, "Steps between checkpoints.", lower_bound=2)
    write = flags.DEFINE_bool("write", False, "Writes to experiments/results/faults/.")

    def command(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {argv[1:]}")
        report = soak(minutes.value, warm_up.value, every.value, steps.value, save.value)
        print({name: value for name, value in report.items() if name != "rows"})
        if write.value:
            _RESULTS.mkdir(parents=True, exist_ok=True)
            write_json(_RESULTS / ("soak_runs.json" if steps.value else "soak.json"), report)
        sys.exit(0 if report["good"] else 1)

    cli.run(command)


if __name__ == "__main__":
    main()

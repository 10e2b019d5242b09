"""Campaign: SIGTERM reaches a run at a random moment, and the same run is started again.

  python -m experiments.faults.signals --write

The run must end without a traceback, and the second one with the bits of a run without a signal.
Every fourth trial is a process of its own, which must end with status 143 and say how to go on.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.faults.campaign import IDENTICAL, TRACEBACK, WRONG, Trial, main, outcome_of
from experiments.faults.full_disk import writing_config
from finetune_jax import interruption
from finetune_jax.files import read_json
from finetune_jax.interruption import Interrupted
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

_CONFIG = """
from experiments.faults.full_disk import writing_config
from experiments.faults.signals import STEPS

def get_config():
    config = writing_config()
    config.train.steps = STEPS
    config.checkpoint.every_steps = 10
    return config
"""
STEPS = 60
"""Number of steps of the run."""


def make_trial(folder: Path, processes: float = 0.25) -> Trial:
    """Trains the run without a signal.

    Args:
      folder: empty folder for all runs.
      processes: share of the trials in a process of their own.

    Returns:
      The function of a trial.
    """
    interruption.install()
    config = writing_config()
    config.train.steps = STEPS
    config.checkpoint.every_steps = 10
    setup = open_setup(config)
    train(setup, folder / "warm")  # the compiled programs are cached for all later trials
    began = time.monotonic()
    train(setup, folder / "whole")
    seconds = time.monotonic() - began
    expected = _end(folder / "whole")
    (folder / "config.py").write_text(_CONFIG)

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        workdir = folder / "trial"
        shutil.rmtree(workdir, ignore_errors=True)
        share = float(rng.random())
        if rng.random() < processes:
            what, right = _in_process(folder, workdir, share)
        else:
            what, right = _here(setup, workdir, share * seconds)
        if not right:
            return TRACEBACK, what
        resumed = outcome_of(lambda: bool(train(setup, workdir)) and _end(workdir) == expected)
        outcome = IDENTICAL if resumed[0] == IDENTICAL else resumed[0] if resumed[1] else WRONG
        return outcome, f"{what}; {resumed[1]}"

    return trial


def _here(setup: Any, workdir: Path, delay: float) -> tuple[str, bool]:
    """(What was seen, whether it was right) of a signal to this process."""
    timer = threading.Timer(delay, os.kill, [os.getpid(), signal.SIGTERM])
    seen = "ended before the signal"
    try:
        timer.start()
        train(setup, workdir)
        timer.cancel()
        timer.join()
    except Interrupted as error:
        seen = str(error)
    finally:
        timer.cancel()
        timer.join()
        interruption.forget()
    return f"after {delay:.2f} s: {seen}", "interrupted" in seen or "ended" in seen


def _in_process(folder: Path, workdir: Path, share: float) -> tuple[str, bool]:
    """(What was seen, whether it was right) of a signal to a process of its own."""
    command = [sys.executable, "-m", "finetune_jax.train", f"--config={folder / 'config.py'}"]
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines, wanted = [], int(share * (STEPS + 4))  # lines before the signal
    for line in process.stderr:
        lines.append(line)
        if len(lines) == wanted + 1:
            process.send_signal(signal.SIGTERM)
    status, last = process.wait(), lines[-1].strip()
    right = status == 143 and "interrupted" in last and "the same command continues" in last
    right |= status == 0  # the run had ended before the signal
    return f"process, line {wanted}: status {status}: {last}", right and "Traceback" not in lines


def _end(workdir: Path) -> tuple[Any, ...]:
    """The results of a finished run that must not depend on a signal."""
    result = read_json(workdir / "result.json")
    weights = (workdir / "artifact" / "model.safetensors").read_bytes()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return weights, result["test"], result["validation"], len(lines)


def _prepare() -> Trial:
    folder = Path(tempfile.mkdtemp(prefix="signals_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_trial(folder)


if __name__ == "__main__":
    main("signals", _prepare, trials=20)

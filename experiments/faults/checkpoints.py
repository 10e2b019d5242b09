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

from experiments.faults.campaign import Trial, damage_one, main, outcome_of
from experiments.faults.training import best_config, make_train
from finetune_jax.files import read_json
from finetune_jax.training.metrics_writer import rows_without_times

_INTERRUPTED = 6


class _Interrupted(Exception):
    """Ends a run as a signal would."""


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

    train = make_train(best_config())
    train(folder / "whole", None)
    expected = _end(folder / "whole")
    with contextlib.suppress(_Interrupted):
        train(folder / "interrupted", interrupt)

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        workdir = folder / "trial"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(folder / "interrupted", workdir)
        done = damage_one(workdir / "checkpoints", rng)

        def resume() -> bool:
            train(workdir, None)
            return _end(workdir) == expected

        outcome, message = outcome_of(resume)
        return outcome, f"{done}: {message}"

    return trial


def _end(workdir: Path) -> tuple[str, str, int]:
    """Fingerprint of the artifact, lines of the metrics, and the step that was selected."""
    return (
        read_json(workdir / "artifact" / "artifact.json")["fingerprint"],
        repr(rows_without_times(workdir / "metrics.jsonl")),
        read_json(workdir / "result.json")["selected_step"],
    )


def _make_trial() -> Trial:
    folder = tempfile.mkdtemp(prefix="faults_checkpoints_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_trial(Path(folder))


if __name__ == "__main__":
    main("checkpoints", _make_trial, 300)

"""Campaign: one file of a cache of activations is damaged, and another run reads the cache.

  python -m experiments.faults.prefix_cache --write

The run must end with the bits of the run without damage, because a run computes damaged entries
anew.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np

from experiments.faults.campaign import Trial, damage_one, main, outcome_of
from experiments.faults.training import best_config, make_train
from finetune_jax.files import read_json
from finetune_jax.training.metrics_writer import rows_without_times


def make_trial(folder: Path) -> Trial:
    """Fills a cache.

    Args:
      folder: empty folder for the cache and for all runs.

    Returns:
      The function of a trial.
    """
    config = best_config()
    config.scheme = "head"
    config.train.steps = 8
    config.checkpoint.every_steps = 8
    config.prefix_cache.dir = str(folder / "cache")
    train = make_train(config)
    train(folder / "first", None)
    expected = _end(folder / "first")
    shutil.copytree(folder / "cache", folder / "whole")

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        for name in ("cache", "trial"):
            shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(folder / "whole", folder / "cache")
        done = damage_one(folder / "cache", rng)

        def run() -> bool:
            train(folder / "trial", None)
            return _end(folder / "trial") == expected

        outcome, message = outcome_of(run)
        return outcome, f"{done}: {message}"

    return trial


def _end(workdir: Path) -> tuple[str, str]:
    """Fingerprint of the artifact, and lines of the metrics."""
    card = read_json(workdir / "artifact" / "artifact.json")
    return card["fingerprint"], repr(rows_without_times(workdir / "metrics.jsonl"))


def _make_trial() -> Trial:
    folder = tempfile.mkdtemp(prefix="faults_prefix_cache_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_trial(Path(folder))


if __name__ == "__main__":
    main("prefix_cache", _make_trial, 100)

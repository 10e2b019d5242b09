"""Chooses the quickstart's learning rates on validation, with the same grid for every scheme.

Command:
  python -m experiments.tune_quickstart [--seeds=3]

Prints the validation accuracy per scheme and rate as mean over seeds, and the best rate. A best
rate at an end of the grid is marked, because rates beyond the end may be better. The command does
not read the test split.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from absl import app, flags
from finetune_jax.configs.quickstart import QUICKSTART, get_config

from finetune_jax.progress import muted, say
from finetune_jax.setup import open_setup
from finetune_jax.tables import table
from finetune_jax.training.arms import run_arms

_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs per scheme and rate.", lower_bound=1)

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    rows = []
    for scheme in QUICKSTART:
        say(f"{scheme}: {len(RATES)} rates x {_SEEDS.value} seeds")
        grid = [(rate, seed) for seed in range(_SEEDS.value) for rate in RATES]
        experiments = []
        for rate, seed in grid:
            config = get_config()
            config.scheme, config.seed, config.data.test = scheme, seed, ""
            config.optimizer.learning_rate = rate
            config.log.tensorboard = False
            experiments.append(open_setup(config))
        with tempfile.TemporaryDirectory() as folder, muted():
            results = run_arms(experiments, [Path(folder) / str(i) for i in range(len(grid))])
        means = {
            rate: statistics.mean(
                # A run that diverged counts as a run that has learned nothing.
                result["validation"]["accuracy"] if "validation" in result else 0.0
                for (r, _), result in zip(grid, results, strict=True)
                if r == rate
            )
            for rate in RATES
        }
        best = max(means, key=lambda rate: means[rate])
        edge = " (edge)" if best in (RATES[0], RATES[-1]) else ""
        rows.append([scheme, *(f"{means[rate]:.1%}" for rate in RATES), f"{best:g}{edge}"])
    print(table(["scheme", *(f"{rate:g}" for rate in RATES), "best"], rows))


if __name__ == "__main__":
    app.run(main)

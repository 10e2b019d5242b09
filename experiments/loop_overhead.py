"""Measures the host's own work between two train steps, as a share of the step.

  python -m experiments.loop_overhead [--steps=200] [--repeats=3] [--write]

``quickstart``: the steps of the quickstart. ``cached_probe``: a linear probe of the same network,
whose steps read cached activations and are the shortest steps of all.

Every step is waited for before the run goes on, so that the time of the run's own code between two
steps (the next batch, logs, checks, progress) has no waiting for devices in it. Evaluations and
saves are left out. The time to put the batch on the devices is given beside. Medians over all
steps but the first ten: on a shared machine, means have the work of other processes in them.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags

from finetune_jax import cli
from finetune_jax.files import write_json
from finetune_jax.mesh import put_batch
from finetune_jax.progress import muted
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import steps as run_steps
from finetune_jax.training.shared import SharedCaches

RESULT = Path(__file__).parent / "results" / "loop_overhead.json"
_FIRST = 10  # steps that are not measured: programs are loaded and caches filled

CASES = {
    "quickstart": {},
    "cached_probe": {"scheme": "linear_probe", "data.augment": ""},
}
"""Keys of the quickstart that each case changes."""


def measure(case: str, steps: int) -> dict[str, float]:
    """Median milliseconds of a step: ``own``, ``placing`` and ``step``.

    Args:
      case: a key of `CASES`.
      steps: number of steps.
    """
    config = cli.load_config("quickstart")
    keys = {"eval.every_epochs": 1e6, "checkpoint.every_steps": 10**6, "train.steps": steps}
    with config.unlocked():
        config.update_from_flattened_dict({**keys, **CASES[case]})
    setup = open_setup(config)
    folder = Path(tempfile.mkdtemp(prefix="loop_overhead_"))
    run = run_steps(setup, folder / "run", SharedCaches())
    times: dict[str, list[float]] = {"own": [], "placing": [], "step": []}
    try:
        with muted():
            request = next(run)
            while request is not None:
                began = time.perf_counter()
                batch = jax.block_until_ready(put_batch(request.batch, setup.mesh))
                placed = time.perf_counter()
                result = request.step(request.state, request.frozen, batch)
                jax.block_until_ready(result)
                ended = time.perf_counter()
                request = run.send(result)
                times["own"].append(time.perf_counter() - ended)
                times["placing"].append(placed - began)
                times["step"].append(ended - placed)
    finally:
        run.close()
        shutil.rmtree(folder)
    # The last step is followed by an evaluation.
    return {name: 1e3 * statistics.median(x[_FIRST:-1]) for name, x in times.items()}


def main() -> None:
    """Runs the command."""
    steps = flags.DEFINE_integer("steps", 200, "Steps of each run.", lower_bound=2 * _FIRST)
    repeats = flags.DEFINE_integer("repeats", 3, "Number of measurements.", lower_bound=1)
    write = flags.DEFINE_bool("write", False, f"Writes experiments/results/{RESULT.name}.")

    def command(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {argv[1:]}")
        report = {}
        for case in CASES:
            found = [measure(case, steps.value) for _ in range(repeats.value)]
            best = min(found, key=lambda times: times["own"])
            report[case] = {**best, "share": best["own"] / best["step"]}
            print(case, {name: round(x, 4) for name, x in report[case].items()}, flush=True)
        if write.value:
            write_json(RESULT, report)

    cli.run(command)


if __name__ == "__main__":
    main()

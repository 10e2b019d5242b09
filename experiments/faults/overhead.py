"""Measures the cost of checksums and locks, as a share of the time of a save and of a run.

  python -m experiments.faults.overhead [--repeats=7] [--write]

``save``: a checkpoint of ViT-B/16 with two moments, from the call until the files are complete.
``run``: the quickstart, 60 steps with a save at every tenth step; the lock, the checksums of the
checkpoints and the search for NaN are counted. The time inside of the checks is divided by the time
of everything else, and the median of some repeats is taken. Two runs, one of them without checks,
cannot be compared instead, because their difference is smaller than the variation between runs.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.faults.campaign import RESULTS
from experiments.faults.training import make_train
from finetune_jax import cli
from finetune_jax.files import write_json
from finetune_jax.models import build, initialise
from finetune_jax.progress import each, muted
from finetune_jax.training import checkpoints, loop, train_phase
from finetune_jax.training.bad_step import TakenStep
from finetune_jax.training.checkpoint_integrity import seal_meta
from finetune_jax.training.run import Run

_STEPS, _SAVE_EVERY = 60, 10


class Clock:
    """Seconds that were spent inside of the checks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of a block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def seal_meta(self, meta: Any, content: Any, metrics: Any) -> dict[str, Any]:
        """Seals as a checkpoint does, and counts the time."""
        jax.block_until_ready(content)  # the train step is no part of the check
        with self.running():
            return seal_meta(meta, content, metrics)

    def check_step(self, run: Run, taken: TakenStep, *, state: bool) -> None:
        """Checks a step as a run does, and counts the time."""
        jax.block_until_ready((taken.after, taken.metrics))
        with self.running():
            _check_step(run, taken, state=state)

    def locked(self, workdir: Path) -> contextlib.AbstractContextManager[Any]:
        """The lock of a run folder; the time to take it and to leave it is counted."""
        lock = _lock_workdir(workdir)

        @contextlib.contextmanager
        def timed() -> Iterator[Any]:
            with self.running():
                owned = lock.__enter__()
            try:
                yield owned
            finally:
                with self.running():
                    lock.__exit__(None, None, None)

        return timed()


_lock_workdir, _check_step = loop.lock_workdir, train_phase.check_step


def saves(repeats: int) -> list[float]:
    """Seconds of the checksums of a save over the seconds of the rest of the save."""
    model = build("vit_b16", 1000)
    params = initialise(model, 224, jax.random.key(0))["params"]
    state = {name: jax.tree.map(jnp.array, params) for name in ("params", "mu", "nu")}
    ratios = []
    for _ in each(range(repeats), "saves"):
        folder = Path(tempfile.mkdtemp(prefix="faults_overhead_"))
        manager = checkpoints.ocp.CheckpointManager(
            folder,
            item_handlers={
                "state": checkpoints.ocp.StandardCheckpointHandler(),
                "meta": checkpoints.ocp.JsonCheckpointHandler(),
            },
        )
        began = time.perf_counter()
        meta = seal_meta({}, state, None)
        sealed = time.perf_counter()
        arguments = checkpoints.ocp.args.Composite(
            state=checkpoints.ocp.args.StandardSave(state),
            meta=checkpoints.ocp.args.JsonSave(meta),
        )
        manager.save(1, args=arguments)
        manager.wait_until_finished()
        ratios.append((sealed - began) / (time.perf_counter() - sealed))
        manager.close()
        shutil.rmtree(folder)
    return ratios


def runs(repeats: int) -> list[float]:
    """Seconds of all checks of a run over the seconds of the rest of the run."""
    config = cli.load_config("quickstart")
    config.train.steps, config.checkpoint.every_steps = _STEPS, _SAVE_EVERY
    train = make_train(config)
    ratios = []
    for number in each(range(repeats + 1), "runs"):
        clock, folder = Clock(), Path(tempfile.mkdtemp(prefix="faults_overhead_"))
        with (
            muted(),
            mock.patch.object(loop, "lock_workdir", clock.locked),
            mock.patch.object(checkpoints, "seal_meta", clock.seal_meta),
            mock.patch.object(train_phase, "check_step", clock.check_step),
        ):
            began = time.perf_counter()
            train(folder / "run", None)
            seconds = time.perf_counter() - began
        shutil.rmtree(folder)
        if number:  # the first run compiles
            ratios.append(clock.seconds / (seconds - clock.seconds))
    return ratios


def main() -> None:
    """Runs the command."""
    repeats = flags.DEFINE_integer("repeats", 7, "Number of measurements.", lower_bound=1)
    write = flags.DEFINE_bool("write", False, "Writes experiments/results/faults/overhead.json.")

    def command(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {argv[1:]}")
        report = {}
        for name, measure in (("run", runs), ("save", saves)):
            ratios = measure(repeats.value)
            report[name] = {"median": statistics.median(ratios), "ratios": ratios}
            print(f"{name}: +{report[name]['median']:.1%}, median of {repeats.value}", flush=True)
        if write.value:
            write_json(RESULTS / "overhead.json", report)

    cli.run(command)


if __name__ == "__main__":
    main()

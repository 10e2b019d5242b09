"""A run from its config to its artifact, in the one order that works."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax

from finetune_jax import config as config_lib
from finetune_jax.hosts import all_agree
from finetune_jax.locks import FolderLock
from finetune_jax.mesh import put_batch
from finetune_jax.progress import say
from finetune_jax.setup import Setup
from finetune_jax.training.explaining import explained
from finetune_jax.training.finishing import (
    quantized,
    run_figures,
    save_run,
    score_run,
    select_variables,
)
from finetune_jax.training.folder import (
    finished_result,
    lock_workdir,
    open_workdir,
    require_apart,
)
from finetune_jax.training.metrics_writer import OnMetrics
from finetune_jax.training.nonfinite import GoBack, Watch
from finetune_jax.training.preparing import prepare_run
from finetune_jax.training.run import Run
from finetune_jax.training.shared import SharedCaches
from finetune_jax.training.solve_phase import solve_phase
from finetune_jax.training.state import State
from finetune_jax.training.step import Metrics
from finetune_jax.training.step_request import StepRequest
from finetune_jax.training.train_phase import train_phase

Steps = Generator[StepRequest | None, tuple[State, Metrics] | None, dict[str, Any]]
"""A run that yields its train steps, is sent their (state, metrics), and returns its figures.

The run yields None once all steps are taken and saved, and is then sent None.
"""


def train(
    setup: Setup,
    workdir: Path,
    on_metrics: OnMetrics | None = None,
    *,
    accept_changed_data: bool = False,
) -> dict[str, Any]:
    """Trains to the end, from the latest checkpoint if there is one.

    A finished run is left as it is; its figures are returned again. With a larger ``train.epochs``
    or ``train.steps`` it goes on, see `finetune_jax.training.extending`.

    Args:
      setup: resolved config.
      workdir: run folder, to which the run writes ``config.json``, ``plan.json``,
        ``manifest.json``, ``left_out.json`` (bad images by split, if there are any),
        ``metrics.jsonl``, TensorBoard events, ``checkpoints/``, ``artifact/`` and ``result.json``.
      on_metrics: called with (step, split, metrics) for every line of ``metrics.jsonl``.
      accept_changed_data: whether to continue a run whose data, tokenizer, weights or teacher are
        other ones than before; the differences are recorded in checkpoints and artifact.

    Returns:
      Final figures, as in ``result.json``: validation and test scores, cost, audit counts,
      seconds.

    Raises:
      UserError: bad input, or the run was made of other data, tokenizer, weights or teacher.
      audit.AuditError: a frozen leaf changed or a trainable leaf did not move.
    """
    run = steps(setup, workdir, SharedCaches(), on_metrics, accept_changed_data=accept_changed_data)
    return drive(run, setup.mesh)


def drive(steps: Steps, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Computes the steps of a run one by one; returns the figures of the run."""
    # Closing the generator after an error or Ctrl-C lets it close its files.
    with contextlib.closing(steps) as run:
        try:
            request = next(run)
            while True:
                result = None
                if request is not None:
                    batch = put_batch(request.batch, mesh)
                    result = request.step(request.state, request.frozen, batch)
                request = run.send(result)
        except StopIteration as end:
            return end.value


def steps(
    setup: Setup,
    workdir: Path,
    caches: SharedCaches,
    on_metrics: OnMetrics | None = None,
    *,
    accept_changed_data: bool = False,
) -> Steps:
    """Trains as `train` does, but leaves the computation of each train step to the driver.

    1. to 4. Prepare data, weights, checkpoints and folder. 5. Run the phases. 6. Select and score
    the final weights. 7. Save the artifact.

    Args:
      setup: resolved config.
      workdir: run folder.
      caches: caches that the run shares with other arms.
      on_metrics: see `train`.
      accept_changed_data: see `train`.
    """
    require_apart(workdir, setup.config.data.source)
    with explained(workdir), lock_workdir(workdir) as lock:
        return (yield from _steps(setup, workdir, caches, on_metrics, lock, accept_changed_data))


def _steps(
    setup: Setup,
    workdir: Path,
    caches: SharedCaches,
    on_metrics: OnMetrics | None,
    lock: FolderLock | None,
    accept_changed_data: bool,
) -> Steps:
    before = open_workdir(workdir, config_lib.to_json(setup.config))
    finished = None if before else finished_result(workdir)
    if all_agree(finished is not None):
        assert finished is not None
        say(
            f"the run in {workdir} is finished; to train longer, raise train.epochs or "
            f"train.steps; to train again, use another --workdir"
        )
        return finished
    back: GoBack | None = None
    while True:
        options = {"accept_changed_data": accept_changed_data, "before": before}
        try:
            return (yield from _pass(setup, workdir, caches, on_metrics, lock, back, options))
        except GoBack as found:
            # The frames of the traceback hold the state of the run.
            back = found.with_traceback(None)
            before = None  # the folder has the new length by now


def _pass(
    setup: Setup,
    workdir: Path,
    caches: SharedCaches,
    on_metrics: OnMetrics | None,
    lock: FolderLock | None,
    back: GoBack | None,
    options: dict[str, Any],
) -> Steps:
    """A run from its latest checkpoint to its end; raises GoBack if the run must go back."""
    # 1. to 4., see `prepare_run`, which takes the options.
    run, meta = prepare_run(setup, workdir, caches, on_metrics, **options)
    run.lock = lock
    run.watch = Watch.resume(setup.config.train, meta, back)
    began = time.monotonic()
    with run.writer, run.checkpoints:
        # 5. Phases. Arms then wait until all arms are here.
        yield from _run_phases(run, meta)
        yield None

        # 6. Which weights to keep, and their scores.
        variables, selected_step = select_variables(run)
        variables = quantized(run, variables)
        seconds = time.monotonic() - began
        result = run_figures(run, selected_step, seconds, score_run(run, variables))

    # 7. Artifact.
    if lock:
        lock.require()
    save_run(run, variables, result)
    return result


def _run_phases(
    run: Run, meta: dict[str, Any] | None
) -> Generator[StepRequest, tuple[State, Metrics], None]:
    """Runs all phases, or the phases from the latest checkpoint on.

    Args:
      run: prepared run.
      meta: meta data of the latest checkpoint; None without a checkpoint.
    """
    first = meta["phase"] if meta else 0
    for index in range(first):
        run.variables = _with_deltas(run, index)
        run.modified |= _modified_by(run, index)
    if meta:
        run.audits, run.solver_reports = meta["audits"], meta["probes"]
        run.train_flops = meta["train_flops"]
    phases = run.setup.phases
    for index in range(first, len(phases)):
        if len(phases) > 1:
            say(f"phase {index + 1} of {len(phases)}: {phases[index].plan.scheme}")
        run.variables = _with_deltas(run, index)
        method = phases[index].solve
        if method:
            solve_phase(run, index, method)
        else:
            yield from train_phase(run, index, meta if index == first else None)
        run.modified |= _modified_by(run, index)
    run.checkpoints.wait()


def _with_deltas(run: Run, index: int) -> dict[str, Any]:
    """The variables with the deltas of a phase at their start values."""
    plan = run.setup.phases[index].plan
    key = jax.random.fold_in(jax.random.key(run.setup.config.seed), 1)
    params = plan.add_deltas(run.variables["params"], key)
    return {**run.variables, "params": params}


def _modified_by(run: Run, index: int) -> set[str]:
    """Paths of the leaves that no longer hold the values of the weight file after a phase."""
    plan = run.setup.phases[index].plan
    return (
        {f"params/{p}" for p in plan.trainable}
        | {f"params/{leaf.path}" for leaf in plan.leaves if leaf.delta}
        | {f"batch_stats/{p}" for p in plan.tracked_statistics}
    )

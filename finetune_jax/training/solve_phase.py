"""A solved phase: the head in closed form or by L-BFGS, on features computed once."""

from __future__ import annotations

import numpy as np

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.evaluation.scores import forward_all
from finetune_jax.hosts import broadcast_from_primary
from finetune_jax.progress import say
from finetune_jax.training import audit as audit_lib
from finetune_jax.training import head_solver
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.run import Run


def solve_phase(run: Run, index: int, method: str) -> None:
    """Solves the head, puts it into ``run.variables``, and appends to ``run.solver_reports``.

    Args:
      run: run with the variables at the start of the phase.
      index: number of the phase.
      method: solver, see `head_solver.solve`.

    Raises:
      UserError: the task is not single-label classification, or the run has no validation split to
        choose the strength on, or features or a head that are not finite.
    """
    if run.setup.task.name != "classification":
        raise UserError(
            f"phase(solve=…) solves heads of single-label classification, not of "
            f"{run.setup.task.name}"
        )
    if "validation" not in run.splits:
        raise UserError("phase(solve=…) chooses on validation: set data.validation")
    phase = run.phase(index)
    before = audit_lib.snapshot(run.variables)
    head, report = head_solver.solve(
        method,
        _features(run, phase, "train"),
        _features(run, phase, "validation"),
        run.setup.task.head_size,
    )
    # Solvers on different hosts may differ in the last bits, so all hosts use the primary's head.
    head = broadcast_from_primary(head)
    chosen = report["chosen"]
    if bad := tree.first_nonfinite(head):
        raise UserError(
            f"phase(solve={method!r}): the solved head is not finite ({bad}), with strength "
            f"{chosen['strength']:.3g}; try another solver, or train the head"
        )
    say(
        f"head solved by {method}: strength {chosen['strength']:.3g}, validation accuracy "
        f"{chosen['accuracy']:.4f}" + ("" if chosen["converged"] else ", NOT converged")
    )
    run.variables = {**run.variables, "params": {**run.variables["params"], "head": head}}
    run.audits.append(audit_lib.audit(phase.plan, before, run.variables))
    run.solver_reports.append(report)
    run.writer.write(phase.start, "probe", {**chosen, "epoch": run.epoch(phase.start)})
    run.previous = None


def _features(run: Run, phase: PhaseRun, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features f32[n, width] that enter the head, and labels i32[n], of a split."""
    setup = run.setup
    forward = run.caches.feature_steps.get(phase.index, phase.compile_features)
    size = setup.config.eval.batch_size
    return forward_all(
        lambda batch: forward(run.variables, batch),
        run.splits[split],
        setup.encode,
        batch_size=size,
        place=run.place,
        rows=run.rows(size),
    )

"""A solved phase: the head in closed form or by L-BFGS, over features computed once."""

from __future__ import annotations

import jax
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.evaluation.scores import forward_all
from finetune_jax.hosts import broadcast_from_primary
from finetune_jax.progress import say
from finetune_jax.training import audit as audit_lib
from finetune_jax.training import head_solver
from finetune_jax.training.run import Run


def solve_phase(current: Run, index: int) -> None:
    """Puts the solved head into ``current.variables`` and the report into ``current.probes``.

    Raises:
      UserError: no validation split to choose the strength on.
    """
    phase = current.setup.phases[index]
    if current.setup.task.name != "classification":
        raise UserError(
            f"phase(solve=…) solves heads of single-label classification, not of "
            f"{current.setup.task.name}"
        )
    if "validation" not in current.splits:
        raise UserError("phase(solve=…) chooses on validation: set data.validation")
    before = audit_lib.snapshot(current.variables)
    head, report = head_solver.solve(
        phase.solve,
        _features(current, index, "train"),
        _features(current, index, "validation"),
        current.setup.task.head_size,
    )
    # Solvers of other machines end in other last bits.
    head = broadcast_from_primary(head)
    chosen = report["chosen"]
    say(
        f"head solved by {phase.solve}: strength {chosen['strength']:.3g}, validation accuracy "
        f"{chosen['accuracy']:.4f}" + ("" if chosen["converged"] else ", NOT converged")
    )
    params = {**current.variables["params"], "head": head}
    current.variables = {**current.variables, "params": params}
    current.audits.append(audit_lib.audit(phase.plan, before, current.variables))
    current.probes.append(report)
    current.writer.write(current.starts[index], "probe", chosen)
    current.state = None


def _features(current: Run, index: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features f32[n, width] entering the head, and labels i32[n], of a split."""
    setup, run = current.setup, current.phase_run(index)
    forward = current.shared.once(
        ("features", index),
        lambda: jax.jit(
            lambda v, x: (
                run.model.apply(v, setup.preprocess.device(x), stop="head"),
                x["label"],
            )
        ),
    )
    size = setup.config.eval.batch_size
    return forward_all(
        lambda batch: forward(current.variables, batch),
        current.splits[split],
        setup.encode,
        batch_size=size,
        place=current.place,
        rows=current.rows(size),
    )

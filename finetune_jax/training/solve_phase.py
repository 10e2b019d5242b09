"""A solved phase: the head in closed form or by L-BFGS, over features computed once."""

from __future__ import annotations

import jax
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.evaluation.scores import forward_all
from finetune_jax.reporting.progress import say
from finetune_jax.training import audit as audit_lib
from finetune_jax.training import probe
from finetune_jax.training.hosts import leaders
from finetune_jax.training.run import Run


def solve_phase(current: Run, index: int) -> None:
    """Puts the solved head into ``current.variables`` and the report into ``current.probes``.

    Raises:
      UserError: no validation split to choose the strength on.
    """
    phase = current.experiment.phases[index]
    if current.experiment.task.name != "classification":
        raise UserError(
            f"phase(solve=…) solves heads of single-label classification, not of "
            f"{current.experiment.task.name}"
        )
    if "validation" not in current.splits:
        raise UserError("phase(solve=…) chooses on validation: set data.validation")
    before = audit_lib.snapshot(current.variables)
    head, report = probe.solve(
        phase.solve,
        _features(current, index, "train"),
        _features(current, index, "validation"),
        current.experiment.task.head_size,
    )
    # Solvers of other machines end in other last bits.
    head = leaders(head)
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
    experiment, run = current.experiment, current.phase_run(index)
    forward = current.shared.once(
        ("features", index),
        lambda: jax.jit(
            lambda v, x: (
                run.model.apply(v, experiment.preprocess.device(x), stop="head"),
                x["label"],
            )
        ),
    )
    size = experiment.config.eval.batch_size
    return forward_all(
        lambda batch: forward(current.variables, batch),
        current.splits[split],
        experiment.encode,
        batch_size=size,
        place=current.place,
        rows=current.rows(size),
    )

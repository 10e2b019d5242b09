"""Computes a step that was not finite once more, and says which stage, leaf and examples it was.

  python -m finetune_jax.replay --workdir=DIR [--step=N] [--json]

A run that meets such a step keeps its batch and its state in DIR/nonfinite/step_N, see
train.on_nan. Nothing is trained or written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from finetune_jax import cli
from finetune_jax.files import plain

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Number of the step; the latest one by default.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the lines.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    from finetune_jax.training.replaying import replay

    report = replay(Path(_WORKDIR.value), _STEP.value)
    if _JSON.value:
        print(json.dumps(plain(report), indent=1, allow_nan=False))
    else:
        print("\n".join(_lines(report)))


def _lines(report: dict[str, Any]) -> list[str]:
    """The report for a terminal."""
    leaf, gradient = report["largest_gradient"]
    width = max(len(stage) for _, stage, _ in report["stages"])
    lines = [
        f"step {report['step']}: {report['problem']}",
        f"weights before the step: {_bad(report['weights'])}",
        "largest magnitude of each stage's output:",
        *(f"  {stage:{width}}  {_number(value)}" for _, stage, value in report["stages"]),
        f"first stage that is not finite: {report['first_stage'] or 'none'}",
        "highest losses:",
        *(f"  {_number(loss)}  {name}" for loss, name in report["losses"]),
        f"gradient: {_bad(report['gradient'])}; largest in {leaf}, {_number(gradient)}",
    ]
    return lines


def _bad(leaf: str | None) -> str:
    return f"{leaf} is not finite" if leaf else "finite"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


if __name__ == "__main__":
    cli.run(main)

"""What the experiments that are ablations share: running one, and the figures of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.reproduction import RESULTS, Measured
from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report.statistics import t_interval

RUNS = Path("runs")
"""Where run folders are; an ablation that is there goes on, or only writes its tables again."""


def ablated(name: str) -> tuple[Outcome, dict[str, Any]]:
    """Runs ``configs/ablations/NAME.py`` and writes tables and figures to ``results/NAME/``.

    Returns:
      The outcome, and what `reproduction.record` wants to know about it.
    """
    from absl import logging

    from finetune_jax.ablation.conduct import Conductor
    from finetune_jax.ablation.launch import make_launcher
    from finetune_jax.ablation.provenance import provenance
    from finetune_jax.ablation.report.write import write_report
    from finetune_jax.ablation.study_file import load_study
    from finetune_jax.cli import load_config

    logging.set_verbosity(logging.WARNING)
    path = f"configs/ablations/{name}.py"
    config = load_config(path)
    command = f"python -m finetune_jax.ablate --config={path} --workdir=runs/{name}"
    conductor = Conductor(load_study(path), config, RUNS / name, make_launcher("local", {}))
    outcome = conductor.run(provenance(path, config, command))
    for file in write_report(outcome, RESULTS / name):
        if file.suffix in (".html", ".pdf"):  # large, and made again by the same command
            file.unlink()
    return outcome, {k: outcome.provenance[k] for k in ("config_hash", "versions", "seconds")}


def row(outcome: Outcome, label: str, table: str = "") -> TableRow:
    """The row of a label; KeyError if there is none."""
    return {(r.spec.table, r.spec.label): r for r in outcome.rows}[table, label]


def scores(found: Mapping[int, Mapping[str, Any]], metric: str, scale: float = 100.0) -> Measured:
    """Mean and t interval of a score over seeds."""
    values = [scale * found[seed][metric] for seed in sorted(found)]
    mean, low, high = t_interval(values)
    n = int(next(iter(found.values())).get("n_scored") or 0)
    return Measured(mean, low, high, n, len(values))


def difference(
    ours: Mapping[int, Mapping[str, Any]],
    theirs: Mapping[int, Mapping[str, Any]],
    metric: str,
    scale: float = 100.0,
) -> Measured:
    """Mean and t interval over seeds of a score of ours minus theirs, of the same seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    values = [scale * (ours[s][metric] - theirs[s][metric]) for s in seeds]
    mean, low, high = t_interval(values)
    n = int(next(iter(ours.values())).get("n_scored") or 0)
    return Measured(mean, low, high, n, len(values))


def figure(found: Measured) -> str:
    """A figure for a sentence."""
    interval = "" if math.isnan(found.low) else f" [{found.low:.1f}, {found.high:.1f}]"
    return f"{found.value:.1f}{interval}"

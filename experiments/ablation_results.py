"""Runs the experiments that are ablations, and computes the figures of their rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.reproduction import RESULTS, Measured
from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report.statistics import t_interval

RUNS = Path("runs")
"""Folder of the ablations. An ablation that was interrupted continues; an ablation that is complete
only writes its tables again."""


def run_ablation(name: str) -> tuple[Outcome, dict[str, Any]]:
    """Runs ``configs/ablations/NAME.py`` and writes tables and figures to ``results/NAME/``.

    Returns:
      The outcome, and its provenance for `reproduction.record`.
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
        # The files are large, and the same command can write them again.
        if file.suffix in (".html", ".pdf"):
            file.unlink()
    return outcome, {k: outcome.provenance[k] for k in ("config_hash", "versions", "seconds")}


def find_row(outcome: Outcome, label: str, table: str = "") -> TableRow:
    """The row with a label in a table.

    Raises:
      KeyError: there is no such row.
    """
    return {(row.spec.table, row.spec.label): row for row in outcome.rows}[table, label]


def mean_score(
    by_seed: Mapping[int, Mapping[str, Any]], metric: str, scale: float = 100.0
) -> Measured:
    """Mean and t interval of a score over seeds, times `scale`."""
    values = [scale * by_seed[seed][metric] for seed in sorted(by_seed)]
    return _measured(values, by_seed)


def mean_difference(
    ours: Mapping[int, Mapping[str, Any]],
    theirs: Mapping[int, Mapping[str, Any]],
    metric: str,
    scale: float = 100.0,
) -> Measured:
    """Mean and t interval over common seeds of our score minus their score, times `scale`."""
    seeds = sorted(ours.keys() & theirs.keys())
    values = [scale * (ours[seed][metric] - theirs[seed][metric]) for seed in seeds]
    return _measured(values, ours)


def with_interval(measured: Measured) -> str:
    """A value with its interval as text, with one decimal."""
    interval = "" if math.isnan(measured.low) else f" [{measured.low:.1f}, {measured.high:.1f}]"
    return f"{measured.value:.1f}{interval}"


def _measured(values: list[float], by_seed: Mapping[int, Mapping[str, Any]]) -> Measured:
    mean, low, high = t_interval(values)
    examples = int(next(iter(by_seed.values())).get("n_scored") or 0)
    return Measured(mean, low, high, examples, len(values))

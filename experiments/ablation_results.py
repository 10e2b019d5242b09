"""Runs the experiments that are ablations, and computes the figures of their rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.reproduction import RESULTS, Measured
from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.ablation.report.base import Estimate
from finetune_jax.ablation.report.example_scores import read_example_scores
from finetune_jax.ablation.report.statistics import difference_of, estimate, pair_test
from finetune_jax.metrics import crossed, names

RUNS = Path("runs")
"""Folder of the ablations. An ablation that was interrupted continues; an ablation that is complete
only writes its tables again."""


def run_ablation(name: str, argument: str = "") -> tuple[Outcome, dict[str, Any]]:
    """Runs ``configs/ablations/NAME.py`` and writes tables and figures to ``results/NAME/``.

    Args:
      name: name of the config.
      argument: argument of the config; the results are then in ``results/NAME/ARGUMENT/``.

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
    path = f"configs/ablations/{name}.py{':' if argument else ''}{argument}"
    runs = RUNS / name / argument
    config = load_config(path)
    command = f"python -m finetune_jax.ablate --config={path} --workdir={runs}"
    conductor = Conductor(load_study(path), config, runs, make_launcher("local", {}))
    outcome = conductor.run(provenance(path, config, command))
    for file in write_report(outcome, RESULTS / name / argument):
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
    by_seed: Mapping[int, Mapping[str, Any]],
    metric: str,
    scale: float = 100.0,
    bounds: tuple[float, float] = names.UNBOUNDED,
) -> Measured:
    """Mean and 95 % interval over seeds of a score in `bounds`, times `scale`.

    One seed has the interval of its task over examples; two have none.
    """
    found = estimate(by_seed, metric, bounds)
    return _measured(found, by_seed, scale)


def mean_difference(
    ours: Mapping[int, Mapping[str, Any]],
    theirs: Mapping[int, Mapping[str, Any]],
    metric: str,
    scale: float = 100.0,
) -> Measured:
    """Mean and 95 % interval over common seeds of our score minus their score, times `scale`.

    The interval does not cover testing on other examples; `row_difference` does. Below three
    seeds there is none.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    gaps = [ours[seed][metric] - theirs[seed][metric] for seed in seeds]
    found = difference_of(gaps, names.UNBOUNDED, crossed.over_seeds(gaps))
    return _measured(found, ours, scale)


def row_difference(
    ours: TableRow, theirs: TableRow, metric: str = "accuracy", scale: float = 100.0
) -> Measured:
    """Our test score minus their test score, with the 95 % interval over seeds and examples.

    Raises:
      UserError: predictions of a row are missing, or are of other examples.
      ValueError: the rows have no common seed.
    """
    examples = read_example_scores([ours, theirs], metric)
    pair = pair_test(ours, theirs, metric, names.named(metric).bounds, examples)
    if pair is None:
        raise ValueError(f"{ours.spec.name} and {theirs.spec.name} have no common seed")
    note = f"interval over {pair.difference.covers}" if pair.difference.covers else ""
    return dataclasses.replace(_measured(pair.difference, ours.test, scale), note=note)


def with_interval(measured: Measured) -> str:
    """A value with its interval as text, with one decimal."""
    interval = "" if math.isnan(measured.low) else f" [{measured.low:.1f}, {measured.high:.1f}]"
    return f"{measured.value:.1f}{interval}"


def _measured(found: Estimate, by_seed: Mapping[int, Mapping[str, Any]], scale: float) -> Measured:
    examples = int(next(iter(by_seed.values())).get("n_scored") or 0)
    value, low, high = (scale * x for x in (found.value, found.low, found.high))
    return Measured(value, low, high, examples, found.seeds)

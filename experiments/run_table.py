"""Runs the reproductions for pods: each one is a table of runs of one config file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from experiments.ablation_results import mean_score
from experiments.reproduction import Measured, NotRun, RunTable, record, set_aside
from finetune_jax import config as config_lib
from finetune_jax.ablation.provenance import provenance
from finetune_jax.cli import load_config
from finetune_jax.data.class_map import open_configured
from finetune_jax.errors import UserError, nearest
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.identity import versions
from finetune_jax.metrics.names import named
from finetune_jax.pretrained.sources import resolve
from finetune_jax.setup import open_setup
from finetune_jax.training.folder import finished_result, lock_workdir, open_workdir
from finetune_jax.training.loop import train

_WORKDIR = flags.DEFINE_string("workdir", "runs/pods", "Folder of the runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of runs per figure.", lower_bound=1)
_ONLY = flags.DEFINE_list(
    "only",
    [],
    "Names of the figures to run; if empty, all figures. Finished runs of other figures count.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS data_dir; if empty, the default of TFDS.")
_PREPARE = flags.DEFINE_bool("prepare", False, "Download and prepare missing TFDS data.")


def run_table(table: RunTable, folder: Path | None = None) -> None:
    """Trains ``CONFIG:argument`` with every seed for every figure, and records the scores.

    A finished run is read instead of trained, and an interrupted run continues. If weights or data
    are missing, the figure is not run and the record says what it needs; if no figure can be run,
    nothing is recorded. Any other failure is raised.

    Args:
      table: the table.
      folder: see `record`.

    Raises:
      UserError: an unknown name in ``--only``.
      SystemExit: no figure can be run; the message says what is needed.
    """
    reproduction = table.reproduction
    names = [target.name for target in reproduction.targets]
    arguments = table.arguments or {name: name for name in names}
    for name in _ONLY.value:
        if name not in arguments:
            raise UserError(f"--only: unknown figure {name!r}.{nearest(name, arguments)}")
    command = f"python -m experiments run {reproduction.name} --seeds={_SEEDS.value}"
    command += f" --only={','.join(_ONLY.value)}" if _ONLY.value else ""
    measured: dict[str, Measured] = {}
    found: dict[str, Measured | NotRun] = {}
    hashes: dict[str, str] = {}
    seconds: dict[Path, float] = {}
    available: dict[str, bool] = {}
    for name, argument in arguments.items():
        path = f"{reproduction.config}:{argument}"
        config = load_config(path)
        hashes[name] = provenance(path, config, command)["config_hash"]
        config.data.data_dir = _DATA_DIR.value
        folders = {
            seed: Path(_WORKDIR.value) / reproduction.name / argument / str(seed)
            for seed in range(_SEEDS.value)
        }
        chosen = not _ONLY.value or name in _ONLY.value
        needs = _missing(config, available) if chosen else "a run without --only"
        metric = table.metrics.get(name, "accuracy")
        by_seed: dict[int, dict[str, Any]] = {}
        for seed, workdir in folders.items():
            if needs and finished_result(workdir) is None:
                continue
            result = _result(config, seed, workdir)
            by_seed[seed] = _test_scores(result, workdir, metric)
            seconds[workdir] = result["seconds"]
        if by_seed:
            found[name] = measured[name] = mean_score(by_seed, metric, bounds=named(metric).bounds)
        else:
            found[name] = NotRun(needs)
    if not measured:
        needs = ", ".join(name for name, is_available in available.items() if not is_available)
        raise SystemExit(f"{reproduction.name}: not run (needs {needs})")
    found |= table.derived(measured)
    facts = {
        "config_hash": hashes,
        "versions": versions(),
        # The seconds of all runs, those of earlier calls included.
        "seconds": sum(seconds.values()),
        "command": command,
    }
    lacking = NotRun("all the runs it is made of")
    record(reproduction, {n: found.get(n, lacking) for n in names}, facts, folder=folder)


def _missing(config: ml_collections.ConfigDict, available: dict[str, bool]) -> str:
    """The weights and data that a run needs and that are missing; empty if nothing is missing.

    Args:
      config: config of the run.
      available: cache of earlier checks by name, which is extended. Without a network one check can
        take half a minute.
    """
    config = config.copy_and_resolve_references()
    # Set in this copy only: preparing the data must not change the config of the run.
    config.data.prepare = _PREPARE.value

    def check_weights() -> None:
        path = config.pretrained.path
        if path and not resolve(path).exists():
            raise UserError(f"no such file: {path}")

    checks = {
        f"weights {config.pretrained.path}": check_weights,
        f"data {config.data.source}": lambda: open_configured(config.data),
    }
    for name, check in checks.items():
        if name not in available:
            try:
                check()
                available[name] = True
            except UserError as error:
                print(f"{name}: {error}")
                available[name] = False
    return " and ".join(name for name in checks if not available[name])


def _result(config: ml_collections.ConfigDict, seed: int, folder: Path) -> dict[str, Any]:
    """The result of a run with a seed, which is trained unless it is finished."""
    config = config.copy_and_resolve_references()
    config.seed = seed
    with lock_workdir(folder):
        other_length = open_workdir(folder, config_lib.to_json(config)) is not None
    if other_length:
        # A run that is extended is not the run of the config, whose schedule has one length.
        print(f"{folder} held a run of another length, which is now {set_aside(folder)}")
    return finished_result(folder) or train(open_setup(config), folder)


def _test_scores(result: Mapping[str, Any], folder: Path, metric: str) -> dict[str, Any]:
    """Test scores of a finished run, `metric` among them."""
    if metric in result["test"]:
        return result["test"]
    # The result of a run has only the main scores of its task; the other scores are computed here.
    evaluator = open_run(folder)
    return evaluator.scores(evaluator.observe("test"))

"""What the reproductions for pods share: a table of runs of one config file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments.reproduction import Measured, NotRun, Reproduction, record

_WORKDIR = flags.DEFINE_string("workdir", "runs/pods", "Folder of the runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs per figure.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "Names of figures to run; all without it. Of the others, "
                          "runs that have ended count.")  # fmt: skip
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS data_dir; empty: TFDS's own.")
_PREPARE = flags.DEFINE_bool("prepare", False, "Download and prepare TFDS data that is not there.")


def run_table(
    reproduction: Reproduction,
    arguments: Mapping[str, str] | None = None,
    metrics: Mapping[str, str] | None = None,
    derived: Callable[[dict[str, Measured]], dict[str, Measured]] = lambda found: {},
    folder: Path | None = None,
) -> None:
    """Trains ``CONFIG:argument`` with every seed for every figure and records what came out.

    A run that has ended is read again, one that was interrupted goes on. Where weights or data are
    not there, the figure is not run and says what it needs; nothing is recorded if no figure is
    run. Anything else that fails is raised.

    Args:
      reproduction: with a config, and a target per figure or one that `derived` makes.
      arguments: of the config, by name of figure; without, every target's name is its argument.
      metrics: by name of figure, score in [-1, 1] that is shown in per cent; ``accuracy`` without.
      derived: further figures from all that were measured, such as averages; those it leaves out
        are not run.
      folder: see `record`.

    Raises:
      UserError: an unknown name in ``--only``.
      SystemExit: nothing could be run; the message says what it needs.
    """
    from experiments.ablated import scores
    from finetune_jax.ablation.provenance import provenance, versions
    from finetune_jax.cli import load_config
    from finetune_jax.errors import UserError, nearest
    from finetune_jax.training.folder import finished_result

    names = [target.name for target in reproduction.targets]
    arguments = arguments or {name: name for name in names}
    for name in _ONLY.value:
        if name not in arguments:
            raise UserError(f"--only: unknown figure {name!r}.{nearest(name, arguments)}")
    command = f"python -m experiments.{reproduction.name} --seeds={_SEEDS.value}"
    command += f" --only={','.join(_ONLY.value)}" if _ONLY.value else ""
    measured: dict[str, Measured] = {}
    found: dict[str, Measured | NotRun] = {}
    hashes: dict[str, str] = {}
    seconds: dict[Path, float] = {}
    there: dict[str, bool] = {}
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
        needs = _missing(config, there) if chosen else "a run without --only"
        metric = (metrics or {}).get(name, "accuracy")
        by_seed = {
            seed: _test_scores(config, seed, one, metric)
            for seed, one in folders.items()
            if not needs or finished_result(one) is not None
        }
        seconds |= {folders[seed]: finished_result(folders[seed])["seconds"] for seed in by_seed}
        if by_seed:
            found[name] = measured[name] = scores(by_seed, metric)
        else:
            found[name] = NotRun(needs)
    if not measured:
        needs = ", ".join(name for name, known in there.items() if not known)
        raise SystemExit(f"{reproduction.name}: not run (needs {needs})")
    found |= derived(measured)
    facts = {
        "config_hash": hashes,
        "versions": versions(),
        "seconds": sum(seconds.values()),  # of all runs, whenever they ran
        "command": command,
    }
    lacking = NotRun("all the runs it is made of")
    record(reproduction, {n: found.get(n, lacking) for n in names}, facts, folder=folder)


def _missing(config: Any, there: dict[str, bool]) -> str:
    """What has to be there before a run can start; empty if it is.

    Args:
      config: of the run.
      there: what was looked for before, and whether it was found; without a network a look takes
        half a minute.
    """
    from finetune_jax.data.sources import open_configured
    from finetune_jax.errors import UserError
    from finetune_jax.pretrained.sources import resolve

    config = config.copy_and_resolve_references()
    config.data.prepare = _PREPARE.value  # here alone: a run is the same however its data came

    def weights() -> None:
        path = config.pretrained.path
        if path and not resolve(path).exists():
            raise UserError(f"no such file: {path}")

    checks = {
        f"weights {config.pretrained.path}": weights,
        f"data {config.data.source}": lambda: open_configured(config.data),
    }
    for name, check in checks.items():
        if name not in there:
            try:
                check()
                there[name] = True
            except UserError as error:
                print(f"{name}: {error}")
                there[name] = False
    return " and ".join(name for name in checks if not there[name])


def _test_scores(config: Any, seed: int, folder: Path, metric: str) -> dict[str, Any]:
    """Test scores of a run, trained now or before."""
    from finetune_jax import config as config_lib
    from finetune_jax.evaluation.evaluator import open_run
    from finetune_jax.setup import open_setup
    from finetune_jax.training.folder import finished_result, open_workdir
    from finetune_jax.training.loop import train

    config = config.copy_and_resolve_references()
    config.seed = seed
    open_workdir(folder, config_lib.to_json(config))
    result = finished_result(folder) or train(open_setup(config), folder)
    if metric in result["test"]:
        return result["test"]
    # Of what a run scores itself only the task's first figures are there.
    evaluator = open_run(folder)
    return evaluator.scores(evaluator.observe("test"))

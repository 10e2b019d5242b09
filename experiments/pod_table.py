"""What the reproductions for pods share: a table of runs of one config file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments.reproduction import Measured, NotRun, Reproduction, record

_WORKDIR = flags.DEFINE_string("workdir", "runs/pods", "Folder of the runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs per figure.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "Arguments of the config to run; all without it.")


def run_table(
    reproduction: Reproduction,
    config_path: str,
    arguments: Mapping[str, str],
    metric: str = "accuracy",
    derived: Callable[[dict[str, Measured]], dict[str, Measured]] = lambda found: {},
) -> None:
    """Trains ``config_path:argument`` for every target and records what came out.

    A run that has ended is read again. Where weights or data lack, the target is not run and says
    what it needs.

    Args:
      reproduction: with a target per argument, or one that `derived` makes.
      config_path: of a file whose ``get_config`` takes an argument.
      arguments: by name of figure.
      metric: score in [-1, 1], shown in per cent.
      derived: further figures from all that were measured, such as averages; those it leaves out
        are not run.
    """
    import hashlib
    import json

    from experiments.ablated import scores
    from finetune_jax import config as config_lib
    from finetune_jax.ablation.about import versions
    from finetune_jax.cli import load_config
    from finetune_jax.errors import UserError
    from finetune_jax.training.experiment import prepare
    from finetune_jax.training.loop import run

    measured: dict[str, Measured] = {}
    found: dict[str, Measured | NotRun] = {}
    hashes, began = {}, time.monotonic()
    for name, argument in arguments.items():
        config = load_config(f"{config_path}:{argument}")
        text = json.dumps(config_lib.to_json(config), sort_keys=True)
        hashes[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
        if _ONLY.value and argument not in _ONLY.value:
            found[name] = NotRun(f"--only without {argument!r} left out")
            continue
        by_seed: dict[int, dict[str, Any]] = {}
        try:
            for seed in range(_SEEDS.value):
                config.seed = seed
                folder = Path(_WORKDIR.value) / reproduction.name / argument / str(seed)
                by_seed[seed] = run(prepare(config), folder)["test"]
        except UserError as error:
            found[name] = NotRun(str(error))
            continue
        found[name] = measured[name] = scores(by_seed, metric)
    found |= derived(measured)
    names = [target.name for target in reproduction.targets]
    for name in names:
        found.setdefault(name, NotRun("all the runs it is made of"))
    about = {"config_hash": hashes, "versions": versions(), "seconds": time.monotonic() - began}
    record(reproduction, {name: found[name] for name in names}, about)

"""Runs an ablation: every row tuned with the same budget, scored once, and put into tables.

  python -m finetune_jax.ablate --config=configs/ablations/quickstart.py --workdir=DIR

Run again, it goes on where it was; arms whose config has changed run anew, no arm runs twice.
Writes ``results.jsonl``, a run folder for each arm, and ``report/``: tables, figures, one page.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from finetune_jax import cli
from finetune_jax.errors import UserError

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the ablation.", required=True)
_LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local", "slurm", "ray"], "Where arms run.")
_OPTIONS = flags.DEFINE_multi_string(
    "launcher_option", [], "key=value, such as partition=gpu of slurm; see ablation/launch_*.py."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Of the local launcher.", lower_bound=1)
_UNIT_ARMS = flags.DEFINE_integer(
    "unit_arms", 0, "Arms a process runs at most; 0: all of one structure.", lower_bound=0
)
flags.mark_flag_as_required("config")


def _options() -> dict[str, Any]:
    options: dict[str, Any] = {"processes": _PROCESSES.value} if _LAUNCHER.value == "local" else {}
    for text in _OPTIONS.value:
        key, found, value = text.partition("=")
        if not found:
            raise UserError(f"--launcher_option: expected key=value, found {text!r}")
        options[key] = int(value) if value.isdecimal() else value
    return options


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from finetune_jax.ablation.about import about
    from finetune_jax.ablation.conduct import Conductor
    from finetune_jax.ablation.launch import make_launcher
    from finetune_jax.ablation.report import terminal_tables, write_report
    from finetune_jax.ablation.study import load_study

    path = flags.FLAGS["config"].config_filename
    study, config = load_study(path), _CONFIG.value
    launcher = make_launcher(_LAUNCHER.value, _options())
    conductor = Conductor(study, config, Path(_WORKDIR.value), launcher, _UNIT_ARMS.value)
    command = shlex.join(["python", "-m", "finetune_jax.ablate", *sys.argv[1:]])
    facts = about(path, config, command)
    outcome = conductor.run(facts)
    folder = Path(_WORKDIR.value) / "report"
    write_report(outcome, folder)
    print("\n" + terminal_tables(outcome))
    print(f"report  {folder}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)

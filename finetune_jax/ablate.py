"""Runs an ablation: tunes every row with the same budget, scores it once, and writes tables.

  python -m finetune_jax.ablate --config=configs/ablations/quickstart.py --workdir=DIR

Run again, the command continues where it was: arms with a changed config run again, and no arm
runs twice. Writes ``results.jsonl``, a run folder for each arm, and ``report/``: tables, figures,
and one HTML page.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from finetune_jax import cli
from finetune_jax.ablation.launch import NAMES
from finetune_jax.errors import UserError

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the ablation.", required=True)
_LAUNCHER = flags.DEFINE_enum("launcher", "local", NAMES, "Where the arms run.")
_OPTIONS = flags.DEFINE_multi_string(
    "launcher_option",
    [],
    "Option of the launcher as key=value, such as partition=gpu for slurm; "
    "finetune_jax/ablation/launch/ lists the options.",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "Number of processes of the local launcher.", lower_bound=1
)
_UNIT_ARMS = flags.DEFINE_integer(
    "unit_arms",
    0,
    "Largest number of arms in one process; 0: all arms of one structure.",
    lower_bound=0,
)
_ACCEPT = cli.define_accept_changed_data()
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
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from finetune_jax.ablation.conduct import Conductor
    from finetune_jax.ablation.launch import make_launcher
    from finetune_jax.ablation.provenance import provenance
    from finetune_jax.ablation.report.write import terminal_tables, write_report
    from finetune_jax.ablation.study_file import load_study
    from finetune_jax.locks import FolderLock

    path: str = flags.FLAGS["config"].config_filename  # type: ignore[attr-defined]  # of its class
    study, config = load_study(path), _CONFIG.value
    launcher = make_launcher(_LAUNCHER.value, _options())
    workdir = Path(_WORKDIR.value)
    command = shlex.join(["python", "-m", "finetune_jax.ablate", *sys.argv[1:]])
    folder = workdir / "report"
    with FolderLock(workdir, f"--workdir={workdir}"):
        conductor = Conductor(
            study,
            config,
            workdir,
            launcher,
            _UNIT_ARMS.value,
            accept_changed_data=_ACCEPT.value,
        )
        outcome = conductor.run(provenance(path, config, command))
        write_report(outcome, folder)
    print("\n" + terminal_tables(outcome))
    print(f"report  {folder}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)

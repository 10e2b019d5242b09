"""Runs an ablation: tunes every row with the same budget, scores it once, and writes tables.

  python -m finetune_jax.ablate --config=configs/ablations/quickstart.py --workdir=DIR

Without a config file, three learning rates for each scheme and three seeds:

  python -m finetune_jax.ablate --data=PHOTOS --model=resnet18 --workdir=DIR \\
      --schemes='linear_probe,last_k(1),full'

Run again, the command continues where it was: arms with a changed config run again, and no arm
runs twice. Writes ``results.jsonl``, a run folder for each arm, and ``report/``: tables, figures,
and one HTML page.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from finetune_jax import cli
from finetune_jax.ablation.launch import NAMES
from finetune_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from finetune_jax.ablation.study import Study

cli.define_config()
cli.define_quick()
_SCHEMES = flags.DEFINE_string(
    "schemes", None, "In place of get_study: schemes to compare, such as 'linear_probe,last_k(1)'."
)
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
cli.define_trust()
cli.define_allow_imports()
flags.mark_flag_as_required("config")


def _options() -> dict[str, Any]:
    options: dict[str, Any] = {"processes": _PROCESSES.value} if _LAUNCHER.value == "local" else {}
    for text in _OPTIONS.value:
        key, found, value = text.partition("=")
        if not found:
            raise UserError(f"--launcher_option: expected key=value, found {text!r}")
        options[key] = int(value) if value.isdecimal() else value
    return options


def _study(path: str) -> tuple[Study, ConfigDict]:
    """The study of ``--schemes`` or of the config file, and its base config."""
    from finetune_jax import config_file
    from finetune_jax.ablation.scheme_study import as_text, scheme_study, split_schemes
    from finetune_jax.ablation.study_file import load_study
    from finetune_jax.chosen_config import chosen_config

    if _SCHEMES.value is None:
        if path == cli.FROM_FLAGS:
            raise UserError("expected --schemes='linear_probe,last_k(1)', found no --schemes")
        return load_study(path), chosen_config()
    # The rows see the same images, and their frozen prefixes can be cached.
    same = {"data.augment": ""} if path == cli.FROM_FLAGS else {}
    configs = {s: chosen_config(scheme=s, more=same) for s in split_schemes(_SCHEMES.value)}
    rates = {scheme: c.optimizer.learning_rate for scheme, c in configs.items()}
    base = next(iter(configs.values()))
    if saved := flags.FLAGS["save_config"].value:
        config_file.write(Path(saved), base, as_text(rates))
    return scheme_study(rates), base


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    cli.no_inputs(argv)
    from finetune_jax.ablation.conduct import Conductor
    from finetune_jax.ablation.launch import make_launcher
    from finetune_jax.ablation.provenance import provenance
    from finetune_jax.ablation.report.write import best_run, terminal_tables, write_report
    from finetune_jax.locks import FolderLock
    from finetune_jax.tables import shown
    from finetune_jax.training.folder import require_apart, require_plain

    path: str = flags.FLAGS["config"].config_filename  # type: ignore[attr-defined]  # of its class
    study, config = _study(path)
    launcher = make_launcher(_LAUNCHER.value, _options())
    workdir = Path(_WORKDIR.value)
    require_plain(workdir)
    require_apart(workdir, config.data.source)
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
    if best := best_run(outcome):
        run = shlex.quote(f"--workdir={best[1]}")
        print(
            f"best on validation: {shown(best[0])}; predict with its first run:\n"
            f"  python -m finetune_jax.predict {run} INPUT",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)

"""Proposes what to unfreeze: profiles the gradient of each stage on a few training batches.

  python -m finetune_jax.suggest --config=configs/quickstart.py [--output=DIR] [--json]

A new head is first solved on frozen features, because gradients through a random head carry no
information. Prints the profile, schemes with their predicted cost, and a command that trains one of
them; with --output, writes ``suggest.json`` and ``profile.png``. Nothing is trained.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from finetune_jax import cli
from finetune_jax.files import plain

cli.define_config()
cli.define_quick()
_OUTPUT = flags.DEFINE_string("output", "", "Folder for suggest.json and profile.png.")
_BATCHES = flags.DEFINE_integer("batches", 5, "Training batches to look at.", lower_bound=2)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the tables.")
cli.define_trust()
cli.define_allow_imports()
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    from finetune_jax.chosen_config import chosen_config
    from finetune_jax.files import write_json
    from finetune_jax.reporting.figures import stage_profile
    from finetune_jax.reporting.plan_tables import profile_tables
    from finetune_jax.training.gradient_profile import profile

    report = profile(chosen_config(), _BATCHES.value)
    print(
        json.dumps(plain(report), indent=1, allow_nan=False)
        if _JSON.value
        else profile_tables(report)
    )
    if not _JSON.value:
        scheme = report["proposals"][1]["scheme"]
        print(f"\nto train {scheme}:\n  {cli.train_command(scheme, sys.argv[1:])}")
    if _OUTPUT.value:
        folder = Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "suggest.json", report)
        stage_profile(report["stages"], folder / "profile.png")
        if not _JSON.value:
            print(f"\nfigure  {folder / 'profile.png'}")


if __name__ == "__main__":
    cli.run(main)

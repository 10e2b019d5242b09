"""Fine-tunes (or pre-trains) one model under one scheme.

  python -m finetune_jax.train --config=configs/quickstart.py --workdir=DIR \\
      --config.scheme='last_k(2)' --config.optimizer.learning_rate=0.05

Without a config file, with defaults for the size of the data (finetune_jax/size_defaults.py):

  python -m finetune_jax.train --data=PHOTOS --model=resnet18 --scheme='last_k(1)' --workdir=DIR \\
      [--weights=published] [--save_config=mine.py]

The same command continues a run that was interrupted. Any key of the config (see
--help=config) can be set with --config.KEY=VALUE. On several hosts the command is the same
on each, with --distributed=auto.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from finetune_jax import cli

cli.define_config()
cli.define_quick()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; created if it does not exist.", required=True
)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "auto, or HOST:PORT,COUNT,NUMBER: this process is one of several; --workdir is shared.",
)
_ACCEPT = cli.define_accept_changed_data()
_DISTRIBUTED_TIMEOUT = flags.DEFINE_float(
    "distributed_timeout",
    120.0,
    "Seconds to wait for the other processes of --distributed.",
    lower_bound=0.1,
)
cli.define_trust()
cli.define_allow_imports()
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    from finetune_jax.progress import say

    say(f"finetune_jax.train in {_WORKDIR.value}")
    from finetune_jax.chosen_config import chosen_config
    from finetune_jax.evaluation.scores import headline
    from finetune_jax.hosts import connect, primary_only
    from finetune_jax.setup import open_setup
    from finetune_jax.training.loop import train

    connect(_DISTRIBUTED.value, _DISTRIBUTED_TIMEOUT.value)
    setup = open_setup(chosen_config())
    with primary_only():
        result = train(setup, Path(_WORKDIR.value), accept_changed_data=_ACCEPT.value)
        audit = result["audit"]
        say(
            f"audit: {audit['frozen_leaves']} frozen leaves and {audit['frozen_statistics']} "
            f"frozen statistics bit-identical, {audit['moved_leaves']} trainable leaves moved"
        )
        for split in ("validation", "test"):
            if split in result:
                say(f"{split} {headline(setup.task.metric, result[split])}")


if __name__ == "__main__":
    cli.run(main)

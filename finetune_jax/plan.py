"""Shows what a config would train and what that costs, before any step and without any data.

  python -m finetune_jax.plan --config=configs/quickstart.py --config.scheme='last_k(2)' [--json]

With --examples=N the data need not be here: each split is planned with N examples, and the classes
are those of TFDS's metadata or of --config.task.num_classes.

Prints the plan grouped by stage (group, shape, learning rate multiplier, decay), BatchNorm and
dropout mode per stage, and the compiled step's figures beside the figures of full fine-tuning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from absl import app, flags

from finetune_jax import cli
from finetune_jax.files import plain

cli.define_config()
cli.define_quick()
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the tables.")
_EXAMPLES = flags.DEFINE_integer(
    "examples", None, "Plan without the data, for splits of so many examples.", lower_bound=1
)
cli.define_trust()
cli.define_allow_imports()
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from finetune_jax.chosen_config import chosen_config
    from finetune_jax.data.source_planned import planned
    from finetune_jax.reporting.plan_tables import plan_tables
    from finetune_jax.training.plan_cost import plan_figures

    config = chosen_config()
    if _EXAMPLES.value is not None:
        with config.unlocked():
            config.data.source = planned(
                config.data.source, config.task.num_classes, _EXAMPLES.value
            )
    figures, setup = plan_figures(config)
    print(
        json.dumps(plain(figures), indent=1, allow_nan=False)
        if _JSON.value
        else plan_tables(figures, setup)
    )


if __name__ == "__main__":
    cli.run(main)

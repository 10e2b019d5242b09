"""The dry run: checks what a config would do, and shows what trains and what that costs.

  python -m finetune_jax.plan --config=configs/quickstart.py --config.scheme='last_k(2)' [--json]

First come the checks, from metadata alone: splits, length and warm-up, batches, the weight file
against the model by names and shapes, and what the audit will demand. If a check fails, nothing is
compiled, and the status is 2. No example and no value of a weight is read, and no step runs.

With --examples=N the data need not be here, nor the weight file: each split is planned with N
examples, and the classes are those of TFDS's metadata or of --config.task.num_classes.

Then comes the plan grouped by stage (group, shape, learning rate multiplier, decay), BatchNorm and
dropout mode per stage, and the compiled step's figures beside the figures of full fine-tuning.
--check_gradients reads the weights and a batch, for a run that computes with weights of few bits.
--json prints one object with all of this, also if a check fails: "checks" and "problems".
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.files import plain

cli.define_config()
cli.define_quick()
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the tables.")
_EXAMPLES = flags.DEFINE_integer(
    "examples", None, "Plan without the data, for splits of so many examples.", lower_bound=1
)
_CHECK_GRADIENTS = flags.DEFINE_bool(
    "check_gradients",
    False,
    "Compare the gradients of a batch over weights of few bits with those over float32.",
)
cli.define_trust()
cli.define_allow_imports()
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    from finetune_jax.chosen_config import chosen_config
    from finetune_jax.data.source_planned import planned
    from finetune_jax.reporting.plan_tables import plan_tables
    from finetune_jax.setup import open_setup
    from finetune_jax.training.dry_run import dry_run, problem
    from finetune_jax.training.gradient_check import check_gradients
    from finetune_jax.training.plan_cost import plan_figures

    if _CHECK_GRADIENTS.value and _EXAMPLES.value is not None:
        raise UserError("--check_gradients reads a batch; give it without --examples")
    try:
        config = chosen_config()
        if _EXAMPLES.value is not None:
            with config.unlocked():
                config.data.source = planned(
                    config.data.source, config.task.num_classes, _EXAMPLES.value
                )
        setup = open_setup(config)
        checks = dry_run(setup, with_data=_EXAMPLES.value is None)
    except UserError as error:
        if _JSON.value:
            failed = [problem("config", str(error)).to_json()]
            print(json.dumps({"checks": failed, "problems": failed}, indent=1))
        raise
    found = [check.to_json() for check in checks]
    problems = [check for check in found if check["problem"]]
    if problems:
        if _JSON.value:
            print(json.dumps({"checks": found, "problems": problems}, indent=1))
        raise UserError("\n".join(check["text"] for check in problems))
    if not _JSON.value:
        print("\n".join(check.text for check in checks), end="\n\n", flush=True)
    figures = plan_figures(setup)
    if _CHECK_GRADIENTS.value:
        figures["gradients"] = check_gradients(setup)
    print(
        json.dumps(plain({"checks": found, "problems": [], **figures}), indent=1, allow_nan=False)
        if _JSON.value
        else plan_tables(figures, setup)
    )


if __name__ == "__main__":
    cli.run(main)

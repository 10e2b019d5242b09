"""Shows what a config would train and what that costs, before any step and without any data.

  python -m finetune_jax.plan --config=configs/quickstart.py --config.scheme='last_k(2)' [--json]

Prints the plan grouped by stage (group, shape, learning rate multiplier, decay), BatchNorm and
dropout mode per stage, and the compiled step's figures beside those of full fine-tuning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from finetune_jax import cli

_CONFIG = cli.define_config()
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the tables.")
flags.mark_flag_as_required("config")


def figures(config: Any) -> tuple[dict[str, Any], Any]:
    """Returns (figures, setup).

    The figures are ``trainable_params``, ``frozen_params``, ``flops_step``, ``flops_step_full``,
    ``flops_forward`` (operations per batch), ``temp_bytes``, ``temp_bytes_full``,
    ``argument_bytes`` (per device), ``optimizer_bytes``, ``optimizer_bytes_full``,
    ``checkpoint_bytes``, and the plan's ``plan_hash`` and ``scheme``: those of the last phase, and
    under ``phases`` those of every phase.
    """
    from finetune_jax.setup import open_setup
    from finetune_jax.training.cost import flops, phase_figures
    from finetune_jax.training.phase import PhaseRun
    from finetune_jax.training.teacher import with_teacher

    setup = with_teacher(open_setup(config))
    reference = config.copy_and_resolve_references()
    with reference.ignore_type():
        reference.scheme = "full"
    full = phase_figures(PhaseRun(with_teacher(open_setup(reference))))
    forward = PhaseRun(setup, len(setup.phases) - 1)
    flops_forward = flops(forward.compile_eval_step(config.train.batch_size))
    phases = []
    for index in range(len(setup.phases)):
        ours = phase_figures(PhaseRun(setup, index))
        phases.append(
            {**ours, "flops_forward": flops_forward}
            | {f"{k}_full": v for k, v in full.items() if k.startswith(_COSTS)}
        )
    return {**phases[-1], "scheme": setup.scheme, "phases": phases}, setup


_COSTS = ("flops", "temp", "argument", "optimizer", "checkpoint")


def render(numbers: dict[str, Any], setup: Any) -> str:
    """The tables a person reads."""
    parts = []
    for index, phase in enumerate(setup.phases):
        if len(setup.phases) > 1:
            parts.append(f"phase {index + 1} of {len(setup.phases)}")
        decay = setup.config.optimizer.weight_decay
        parts.append(_render(numbers["phases"][index], phase.plan, decay))
    return "\n\n".join(parts)


def _render(numbers: dict[str, Any], plan: Any, default_decay: float) -> str:
    from finetune_jax.schemes import FROZEN
    from finetune_jax.tables import count, size, table

    statistics = {path.split("/", 1)[0] for path in plan.statistics}
    rows = []
    for stage in plan.stages:
        norm = ("tracked" if stage in plan.tracked else "kept") if stage in statistics else "-"
        dropout = "train" if stage in plan.dropout else "eval"
        rows.append([stage, "", "", "", "", f"statistics {norm}, dropout {dropout}"])
        for leaf in (leaf for leaf in plan.leaves if leaf.stage == stage):
            group = plan.groups.get(leaf.group)
            decay = default_decay if group is None or group.decay is None else group.decay
            rows.append(
                [
                    "  " + leaf.path.split("/", 1)[1],
                    "x".join(map(str, leaf.shape)),
                    leaf.group,
                    "" if leaf.group == FROZEN else f"{leaf.lr:g}",
                    "" if leaf.group == FROZEN else f"{decay if leaf.decays else 0:g}",
                    "",
                ]
            )
    leaves = table(["leaf", "shape", "group", "lr x", "decay", "mode"], rows, left=3)
    total = numbers["trainable_params"] + numbers["frozen_params"]
    pairs = [
        ("step FLOPs", count, "flops_step"),
        ("temporary bytes per device", size, "temp_bytes"),
        ("argument bytes per device", size, "argument_bytes"),
        ("optimizer bytes", size, "optimizer_bytes"),
        ("checkpoint bytes", size, "checkpoint_bytes"),
    ]
    costs = table(
        ["compiled step", "this scheme", "full", "ratio"],
        [
            [
                name,
                show(numbers[key]),
                show(numbers[f"{key}_full"]),
                f"{numbers[key] / max(numbers[f'{key}_full'], 1):.3f}",
            ]
            for name, show, key in pairs
        ],
    )
    share = numbers["trainable_params"] / total
    return (
        f"{leaves}\n\nscheme {plan.scheme}  (plan {plan.hash}, batch_norm {plan.batch_norm})\n"
        f"trainable {numbers['trainable_params']:,} of {total:,} parameters ({share:.2%}), frozen "
        f"{numbers['frozen_params']:,}\n\n{costs}\n"
        f"frozen prefix: {numbers['prefix_stages']} of {len(plan.stages)} stages\n"
        f"forward alone: {count(numbers['flops_forward'])} FLOPs for the same batch"
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    numbers, setup = figures(_CONFIG.value)
    print(json.dumps(numbers, indent=1) if _JSON.value else render(numbers, setup))


if __name__ == "__main__":
    cli.run(main)

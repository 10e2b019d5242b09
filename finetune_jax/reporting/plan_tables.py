"""A plan, or a gradient profile, as plain text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_jax.schemes import FROZEN, Plan
from finetune_jax.setup import Setup
from finetune_jax.tables import count, size, table


def plan_tables(numbers: dict[str, Any], setup: Setup) -> str:
    """Tables of each phase: its leaves by stage, and its costs beside full fine-tuning.

    Args:
      numbers: figures of `training.plan_cost.plan_figures`.
      setup: the setup that the figures belong to.
    """
    parts = []
    for index, phase in enumerate(setup.phases):
        if len(setup.phases) > 1:
            parts.append(f"phase {index + 1} of {len(setup.phases)}")
        decay = setup.config.optimizer.weight_decay
        parts.append(_phase_tables(numbers["phases"][index], phase.plan, decay))
    for row in numbers.get("gradients", ()):
        parts.append(
            f"gradients of phase {row['phase']} over weights of few bits and over float32 weights: "
            f"cosine {row['cosine']:.4f}, ratio of lengths {row['norm_ratio']:.3f} "
            f"(one batch of {row['examples']})"
        )
    return "\n\n".join(parts)


def _phase_tables(numbers: dict[str, Any], plan: Plan, default_decay: float) -> str:
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
        f"{numbers['frozen_params']:,}{_stored(numbers)}\n\n{costs}\n"
        f"frozen prefix: {numbers['prefix_stages']} of {len(plan.stages)} stages\n"
        f"forward alone: {count(numbers['flops_forward'])} FLOPs for the same batch"
    )


def _stored(numbers: Mapping[str, Any]) -> str:
    """The bytes of the frozen half, where it is not stored in float32; else ""."""
    stored, plain = numbers["frozen_bytes"], numbers["frozen_bytes_float32"]
    if stored == plain:
        return ""
    return f", which take {size(stored)} in place of {size(plain)} in float32"


def highest_below_head(rows: Sequence[Mapping[str, Any]], key: str, head: str = "head") -> float:
    """The highest value among the stages without the head, whose value dwarfs those of the others.

    Args:
      rows: rows of `training.importance.by_stage`.
      key: ``rgn`` or ``snr``.
      head: stage that is left out, unless it is the only one.
    """
    body = [row[key] for row in rows if row["stage"] != head] or [row[key] for row in rows]
    return max(body) or 1.0


def _bar(value: float, top: float) -> str:
    """A bar of 20 signs for `top`; an arrow ends the bar of a higher value."""
    return "#" * 19 + ">" if value > top else "#" * round(20 * value / top)


def profile_tables(report: dict[str, Any]) -> str:
    """Tables of a gradient profile: the stages, and the proposed schemes with their costs.

    Args:
      report: result of `training.gradient_profile.profile`.
    """
    top = highest_below_head(report["stages"], "rgn")
    stages = [
        [
            row["stage"], _bar(row["rgn"], top), f"{row['params']:,}",
            f"{row['rgn']:.3g}", f"{row['snr']:.3g}",
        ]
        for row in report["stages"]
    ]  # fmt: skip
    full = next(p for p in report["proposals"] if p["scheme"] == "full")
    schemes = [
        [
            p["scheme"], p["reason"], f"{p['trainable_params']:,}",
            f"{count(p['flops_step'])} ({p['flops_step'] / full['flops_step']:.2f})",
            size(p["temp_bytes"]), size(p["optimizer_bytes"]),
        ]
        for p in report["proposals"]
    ]  # fmt: skip
    return (
        table(["stage", "", "parameters", "|g| / |w|", "signal/noise"], stages, left=2)
        + "\n\n"
        + table(
            ["scheme", "why", "trainable", "step FLOPs (of full)", "temporary", "optimizer"],
            schemes,
            left=2,
        )
    )

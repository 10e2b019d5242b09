"""Linear probing, full fine-tuning, and LP-FT, in distribution and out of distribution.

Kumar et al. 2022 (arXiv 2202.10054): full fine-tuning is better than a probe in distribution and
worse out of distribution, because it distorts pretrained features; LP-FT, a probe followed by
fine-tuning, is good at both. This experiment fine-tunes a CIFAR-10 ResNet-20 on 1,000 Bangla
digits; the out-of-distribution data are the test images under seven corruptions at severity 3.
CIFAR-10.1 is not available here.

Hazards: another network, other data, another kind of shift (digits are far from CIFAR-10, so a
probe is weak everywhere); only directions are compared.

Hardware: 2 CPU cores, about a quarter of an hour.

Command:
  python -m experiments.lp_ft
"""

from __future__ import annotations

from absl import app

from experiments.reproduction import Reproduction, Target, record

_SOURCE = "averages of table 1 and 2: ID 85.1/82.9/85.7, OOD 59.3/66.2/68.9 (FT/LP/LP-FT)"

REPRODUCTION = Reproduction(
    name="lp_ft",
    paper="Kumar et al. 2022, arXiv 2202.10054",
    claim="LP-FT distorts features less than full fine-tuning and is better out of distribution",
    targets=(
        Target("ID: LP-FT - full", 0.0, "above", unit="points", source=_SOURCE, second_hand=True),
        Target("OOD: LP-FT - full", 0.0, "above", unit="points", source=_SOURCE, second_hand=True),
        Target("OOD: probe - full", 0.0, "above", unit="points", source=_SOURCE, second_hand=True),
        Target("feature drift: LP-FT - full", 0.0, "below", unit="of the features' norm",
               source="section 3", second_hand=True),
    ),
    hardware="2 CPU cores",
    hazards="ResNet-20 on Bangla digits and their corruptions, not ResNet-50 and natural shifts",
    command="python -m experiments.lp_ft",
    needs="the published ResNet-20 and TFDS cmaterdb/bangla",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from experiments.ablation_results import (
        find_row,
        mean_difference,
        mean_score,
        row_difference,
        run_ablation,
        with_interval,
    )
    from finetune_jax.metrics.names import SHARE

    outcome, provenance = run_ablation("lp_ft")
    rows = {name: find_row(outcome, name) for name in ("linear_probe", "full", "lp_ft")}
    lines = [
        "| scheme | in distribution, % | corrupted, % | drift, share of the features' norm |",
        "|---|---|---|---|",
    ]
    off, drift = {}, {}
    for name, one in rows.items():
        off[name], drift[name] = one.others["corruptions"], one.others["drift"]
        cells = [
            with_interval(mean_score(one.test, "accuracy", bounds=SHARE)),
            with_interval(mean_score(off[name], "mean_corrupted", bounds=SHARE)),
            f"{mean_score(drift[name], 'feature_drift_relative', 1).value:.3f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    full = rows["full"]
    found = {
        "ID: LP-FT - full": row_difference(rows["lp_ft"], full),
        "OOD: LP-FT - full": mean_difference(off["lp_ft"], off["full"], "mean_corrupted"),
        "OOD: probe - full": mean_difference(off["linear_probe"], off["full"], "mean_corrupted"),
        "feature drift: LP-FT - full": mean_difference(
            drift["lp_ft"], drift["full"], "feature_drift_relative", 1
        ),
    }
    record(REPRODUCTION, found, provenance, "\n".join(lines))


if __name__ == "__main__":
    app.run(main)

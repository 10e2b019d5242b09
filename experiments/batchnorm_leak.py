"""Measures the harm to a linear probe whose BatchNorm statistics follow the batches.

BatchNorm statistics are state: in train mode a "frozen" backbone drifts away from its weights
(others measured that logits differ by 44 % of their scale after head-only training). This
experiment probes a CIFAR-10 ResNet-20 on Bangla digits with statistics that are frozen, tracked, or
re-estimated once before training. It reports the drift of the features from those of the pretrained
model, and the accuracy at the best rate of each policy.

Hazards: which policy is more accurate depends on the distance between source and target data; the
claim is about the drift only. Drift under re-estimation is intended.

Hardware: 2 CPU cores, minutes.

Command:
  python -m experiments.batchnorm_leak
"""

from __future__ import annotations

from absl import app

from experiments.reproduction import Reproduction, Target, record

REPRODUCTION = Reproduction(
    name="batchnorm_leak",
    paper="trap of many trainers, e.g. keras #9965, peft #1732, lightning #15062",
    claim="A probe with tracked BatchNorm statistics moves the features it calls frozen",
    targets=(
        Target("drift, frozen", 0.0, tolerance=0.0, unit="of the features' norm"),
        Target("drift, track", 0.01, "above", unit="of the features' norm"),
        Target("track - frozen", 0.0, "above", unit="points of accuracy",
               source="the other direction would be as good a finding"),
    ),
    hardware="2 CPU cores",
    hazards="one target data set; accuracy may go either way",
    command="python -m experiments.batchnorm_leak",
    needs="the published ResNet-20 and TFDS cmaterdb/bangla",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from experiments.ablation_results import (
        find_row,
        mean_score,
        row_difference,
        run_ablation,
        with_interval,
    )
    from finetune_jax.metrics.names import POSITIVE, SHARE

    outcome, provenance = run_ablation("batchnorm_leak")
    rows = {
        how: find_row(outcome, f"batch_norm={how}") for how in ("frozen", "track", "reestimate")
    }
    drift = {
        how: mean_score(r.others["drift"], "feature_drift_relative", 1, POSITIVE)
        for how, r in rows.items()
    }
    lines = [
        "| statistics | accuracy, % | drift of features, share of their norm |",
        "|---|---|---|",
    ]
    for how, one in rows.items():
        accuracy = with_interval(mean_score(one.test, "accuracy", bounds=SHARE))
        lines.append(f"| {how} | {accuracy} | {drift[how].value:.4f} |")
    found = {
        "drift, frozen": drift["frozen"],
        "drift, track": drift["track"],
        "track - frozen": row_difference(rows["track"], rows["frozen"]),
    }
    record(REPRODUCTION, found, provenance, "\n".join(lines))


if __name__ == "__main__":
    app.run(main)

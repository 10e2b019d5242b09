"""Do L2-SP, weight averaging and sharpness-aware steps help most with few examples?

L2-SP (Li et al. 2018, arXiv 1802.01483) pulls weights towards their start values; an exponential
moving average and SAM (Foret et al. 2020, arXiv 2010.01412) look for flat minima. Each method is
reported to help small data sets most. This experiment fine-tunes a whole CIFAR-10 ResNet-20 on 100,
500 and 1,000 Bangla digits, with 40 steps in every arm.

Hazards: a SAM step costs as much as two steps; the strengths are the usual values and are not
tuned, but the rates are; digits are far from CIFAR-10, where the start values help least.

Hardware: 2 CPU cores, about a quarter of an hour.

Command:
  python -m experiments.anchors
"""

from __future__ import annotations

from absl import app

from experiments.reproduction import Reproduction, Target, record

_KINDS = ("l2_sp=0.01", "ema_decay=0.9", "sam_rho=0.05")
_SIZES = (100, 500, 1000)

REPRODUCTION = Reproduction(
    name="anchors",
    paper="Li et al. 2018, arXiv 1802.01483; Foret et al. 2020, arXiv 2010.01412",
    claim="L2-SP, weight averaging and SAM improve fine-tuning on few examples",
    targets=tuple(
        Target(f"{kind} - plain, {size} examples", 0.0, "above", unit="points of accuracy",
               source="direction", second_hand=True)
        for size in _SIZES
        for kind in _KINDS
    ),
    hardware="2 CPU cores",
    hazards="strengths not tuned; 40 steps; a far target",
    command="python -m experiments.anchors",
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
    from finetune_jax.metrics.names import SHARE

    outcome, provenance = run_ablation("anchors")
    lines = [
        "Accuracy in %, mean over seeds [95 % interval over seeds]:", "",
        "| examples | plain | " + " | ".join(_KINDS) + " |", "|---" * (len(_KINDS) + 2) + "|",
    ]  # fmt: skip
    found = {}
    for size in _SIZES:
        table = f"train=train[:{size}]"
        rows = [find_row(outcome, label, table) for label in ("l2_sp=0.0", *_KINDS)]
        cells = [with_interval(mean_score(one.test, "accuracy", bounds=SHARE)) for one in rows]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
        for kind, one in zip(_KINDS, rows[1:], strict=True):
            found[f"{kind} - plain, {size} examples"] = row_difference(one, rows[0])
    record(REPRODUCTION, found, provenance, "\n".join(lines))


if __name__ == "__main__":
    app.run(main)

"""Is fine-tuning the first block to a corruption better than fine-tuning everything?

Lee et al. 2022 (arXiv 2210.11466), CIFAR-10-C: for a ResNet-26 fine-tuned on 1,000 corrupted
images, the first block alone reaches more than full fine-tuning. A replication that chose rates on
the test set did not confirm this. This experiment uses ResNet-20 with its published weights, one
corruption of each group at severity 5 computed by our own code, 4 epochs instead of 15, rates
chosen on validation, three seeds, and BatchNorm statistics that are either kept (as in the
published code) or follow the batches.

Hazards: a smaller network, fewer steps, four of fourteen corruptions, and test images that we
corrupted ourselves; the order of the schemes can be compared, the level cannot. An interval over
three seeds is wide.

Hardware: 2 CPU cores, about an hour.

Command (after ``python -m experiments.materials``):
  python -m experiments.surgical
"""

from __future__ import annotations

from absl import app

from experiments.reproduction import Measured, NotRun, Reproduction, Target, record

_NAMES = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")
_FIRST = "stages('stem', 'layer1_.*')"

REPRODUCTION = Reproduction(
    name="surgical",
    paper="Lee et al. 2022, arXiv 2210.11466",
    claim="Tuning the first block to a corruption beats tuning everything",
    targets=tuple(
        Target(
            f"first block - full, {name}, {how}", 0.0, "above", unit="points of accuracy",
            source="direction of 82.8 against 79.9 % over 14 corruptions", second_hand=True,
        )
        for name in _NAMES
        for how in ("frozen_all", "track")
    ),
    hardware="2 CPU cores",
    hazards="ResNet-20 for ResNet-26, 4 epochs for 15, 4 corruptions for 14, images of our making",
    command="python -m experiments.surgical",
    needs="the published ResNet-20 and CIFAR-10, see experiments/materials.py",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from finetune_jax.configs.ablations._materials import MATERIALS

    from experiments.ablation_results import (
        find_row,
        mean_score,
        row_difference,
        run_ablation,
        with_interval,
    )
    from finetune_jax.metrics.names import SHARE

    outcome, provenance = run_ablation("surgical")
    found: dict[str, Measured | NotRun] = {}
    lines = [
        "Accuracy on 2,000 test images in %, mean over seeds [95 % interval over seeds]:",
        "",
        "| corruption | statistics | full | first block | layer2 | layer3 | head |",
        "|---|---|---|---|---|---|---|",
    ]
    schemes = ("full", _FIRST, "stages('layer2_.*')", "stages('layer3_.*')", "head")
    for name in _NAMES:
        table = f"folder:{MATERIALS}/cifar10_c/{name}"
        for how in ("frozen_all", "track"):
            labels = {scheme: f"{scheme}, batch_norm={how}" for scheme in schemes}
            known = {r.spec.label: r for r in outcome.tables[table]}
            cells = [
                with_interval(mean_score(known[label].test, "accuracy", bounds=SHARE))
                if label in known
                else "–"
                for label in labels.values()
            ]
            lines.append(f"| {name} | {how} | " + " | ".join(cells) + " |")
            first, full = (find_row(outcome, labels[s], table) for s in (_FIRST, "full"))
            found[f"first block - full, {name}, {how}"] = row_difference(first, full)
    record(REPRODUCTION, found, provenance, "\n".join(lines))


if __name__ == "__main__":
    app.run(main)

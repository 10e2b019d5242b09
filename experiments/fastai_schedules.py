"""Gradual unfreezing, discriminative rates and `fine_tune`, against plain full fine-tuning.

ULMFiT (Howard and Ruder 2018, arXiv 1801.06146) unfreezes one group per epoch, starting at the top,
and divides the rate by 2.6 per group; fastai's `fine_tune` trains the head for an epoch, halves the
rate, then trains everything with rates that span a factor of 100. Tests (tests/schemes) check that
our schedules follow these rules step by step. This experiment compares the schedules with plain
full fine-tuning of the same length, each with its own rate.

Hazards: a ResNet-20 on 1,000 Bangla digits, far from the texts for which ULMFiT was designed; only
5 epochs.

Hardware: 2 CPU cores, minutes.

Command:
  python -m experiments.fastai_schedules
"""

from __future__ import annotations

from absl import app

from experiments.reproduction import Reproduction, Target, record

_SCHEMES = (
    "discriminative(2.6)",
    "gradual(groups=4)",
    "gradual(groups=4) + discriminative(2.6)",
    "fine_tune",
)

REPRODUCTION = Reproduction(
    name="fastai_schedules",
    paper="Howard and Ruder 2018, arXiv 1801.06146; fastai's fine_tune",
    claim="Gradual unfreezing and discriminative rates beat plain full fine-tuning",
    targets=tuple(
        Target(f"{name} - full", 0.0, "above", unit="points of accuracy",
               source="direction of table 7", second_hand=True)
        for name in _SCHEMES
    ),
    hardware="2 CPU cores",
    hazards="an image network on 1,000 digits for a language model; 5 epochs",
    command="python -m experiments.fastai_schedules",
    needs="the published ResNet-20 and TFDS cmaterdb/bangla",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from experiments.ablation_results import find_row, row_difference, run_ablation

    outcome, provenance = run_ablation("fastai_schedules")
    full = find_row(outcome, "full")
    found = {f"{name} - full": row_difference(find_row(outcome, name), full) for name in _SCHEMES}
    record(REPRODUCTION, found, provenance, "All rows: [table.md](table.md).")


if __name__ == "__main__":
    app.run(main)

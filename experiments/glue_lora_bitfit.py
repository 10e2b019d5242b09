"""GLUE, on accelerators: RoBERTa-base with LoRA, BERT-large with BitFit, both beside full training.

Hu et al. 2021 (arXiv 2106.09685, README): accuracy of SST-2, MRPC, QNLI, QQP, RTE and MNLI. Ben
Zaken et al. 2021 (arXiv 2106.10199): BERT-large, figures recalled.

Hazards: LoRA's RTE, MRPC and STS-B start from an adapter of MNLI (recalled), and are left out here;
CoLA is scored by the Matthews correlation and STS-B by the Pearson correlation, also left out: the
table is of accuracies. Scores are of the validation split, whose rates were chosen on it by others.

Hardware: an accelerator, a day.

Command:
  python -m experiments.glue_lora_bitfit
"""

from __future__ import annotations

from absl import app

from experiments.reproduction import Reproduction, Target

_PUBLISHED = {
    "full_roberta": {"mnli": 87.6, "sst2": 94.8, "qnli": 92.8, "qqp": 91.9},
    "lora": {"mnli": 87.5, "sst2": 95.1, "qnli": 93.3, "qqp": 90.8},
    "full_bert": {"mnli": 85.5, "sst2": 93.4, "qnli": 91.7},
    "bitfit": {"mnli": 84.4, "sst2": 93.2, "qnli": 91.4},
}

REPRODUCTION = Reproduction(
    name="glue_lora_bitfit",
    paper="Hu et al. 2021, arXiv 2106.09685; Ben Zaken et al. 2021, arXiv 2106.10199",
    claim="LoRA and BitFit are level with full fine-tuning on GLUE",
    targets=tuple(
        Target(f"{task},{method}", value, "within", 0.6, "% accuracy",
               "table 2" if method in ("full_bert", "bitfit") else "README",
               second_hand=method in ("full_bert", "bitfit"))
        for method, tasks in _PUBLISHED.items()
        for task, value in tasks.items()
    ),
    hardware="an accelerator",
    hazards="validation scores chosen on validation by others; tasks without accuracy left out",
    command="python -m experiments.glue_lora_bitfit",
    needs="an accelerator, TFDS data and weights of the hub",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    from experiments.pod_table import run_table

    names = {target.name: target.name for target in REPRODUCTION.targets}
    run_table(REPRODUCTION, "configs/pods/glue.py", names)


if __name__ == "__main__":
    import experiments.pod_table  # noqa: F401  its flags

    app.run(main)

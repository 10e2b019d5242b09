"""GLUE, on accelerators: RoBERTa-base with LoRA, BERT-large with BitFit, both beside full training.

Hu et al. 2021 (arXiv 2106.09685), figures of microsoft/LoRA's README. Ben Zaken et al. 2021 (arXiv
2106.10199), BERT-large, figures recalled. Accuracy, but for CoLA (Matthews) and STS-B (Pearson for
RoBERTa, Spearman for BERT).

Hazards: scores are of the validation split, on which the papers chose rates and the best epoch;
here the last epoch counts. LoRA's MRPC, RTE and STS-B start from an adapter of MNLI and are left
out, as are BitFit's MRPC and QQP, which are F1. MNLI is over both kinds for RoBERTa, matched for
BERT. The tolerances are ours.

Hardware: an accelerator, days.

Command:
  python -m experiments run glue_lora_bitfit
"""

from __future__ import annotations

from experiments.reproduction import Reproduction, RunTable, Target

_PUBLISHED = {
    "full_roberta": {
        "mnli": 87.6, "sst2": 94.8, "mrpc": 90.2, "cola": 63.6, "qnli": 92.8, "qqp": 91.9,
        "rte": 78.7, "stsb": 91.2,
    },
    "lora": {"mnli": 87.5, "sst2": 95.1, "cola": 63.4, "qnli": 93.3, "qqp": 90.8},
    "full_bert": {
        "mnli": 85.5, "sst2": 93.4, "cola": 62.2, "qnli": 91.7, "rte": 71.9, "stsb": 90.0,
    },
    "bitfit": {"mnli": 84.4, "sst2": 93.2, "cola": 63.6, "qnli": 91.4, "rte": 73.2, "stsb": 90.3},
}  # fmt: skip
# Points, of validation splits of 277, 408 and 1,043 examples.
_WIDE = {"rte": 2.5, "mrpc": 1.5, "cola": 2.0}


def _metric(task: str, method: str) -> str:
    """The score in the published table."""
    of_pairs = "pearson" if method in ("full_roberta", "lora") else "spearman"
    return {"cola": "matthews", "stsb": of_pairs}.get(task, "accuracy")


_SOURCES = {
    **dict.fromkeys(("full_roberta", "lora"), "README of microsoft/LoRA"),
    **dict.fromkeys(("full_bert", "bitfit"), "table of BERT-large, recalled"),
}

REPRODUCTION = Reproduction(
    name="glue_lora_bitfit",
    paper="Hu et al. 2021, arXiv 2106.09685; Ben Zaken et al. 2021, arXiv 2106.10199",
    claim="LoRA and BitFit are level with full fine-tuning on GLUE",
    targets=tuple(
        Target(f"{task},{method}", value, "within", _WIDE.get(task, 0.6),
               f"% {_metric(task, method)}", _SOURCES[method],
               second_hand=_SOURCES[method].endswith("recalled"))
        for method, tasks in _PUBLISHED.items()
        for task, value in tasks.items()
    ),
    hardware="an accelerator",
    hazards="validation scores, chosen on validation by the papers; tasks scored by F1 left out",
    command="python -m experiments run glue_lora_bitfit",
    needs="an accelerator, TFDS data and weights of the hub",
    config="configs/pods/glue.py",
)  # fmt: skip

TABLE = RunTable(
    REPRODUCTION,
    metrics={target.name: _metric(*target.name.split(",")) for target in REPRODUCTION.targets},
)

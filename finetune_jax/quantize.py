"""Stores the weights of a trained model in 8 or 4 bits and says what this changes.

  python -m finetune_jax.quantize --workdir=runs/a --how=int8 --output=runs/a_int8
  python -m finetune_jax.quantize --workdir=runs/a --how='head=keep, .*=int4(tile=32)' --output=…
  python -m finetune_jax.quantize --workdir=runs/a --how=int4 --sensitivity --output=runs/a_stages
  python -m finetune_jax.quantize --workdir=runs/a --how='int8, int4' --budget=120000 --output=…

Formats are int8, fp8, int4, nf4, w8a8 (int8, and the inputs of the layers are rounded to 8 bits)
and w8a8_static (with scales of the inputs that are measured on training examples). A rule is
PATTERN=FORMAT, where the pattern is a regular expression of stages or paths of leaves, and ``keep``
keeps the weights as they are. The model computes in its dtype with the dequantized weights: the
folder is smaller, and not the computation.
Writes ``artifact/`` and ``quantize.json``; the other commands read the folder as a run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.tables import shown, size, table

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
_HOW = flags.DEFINE_string(
    "how", "int8", "A format, or rules 'PATTERN=FORMAT, …'; with --budget, the formats to choose."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write, new or empty.", required=True)
_SPLIT = flags.DEFINE_enum(
    "split", "", ["", "train", "validation", "test"],
    "Split of the examples to compare on; default: test, and validation for --sensitivity. "
    "--budget chooses on validation whatever the split is.",
)  # fmt: skip
_EXAMPLES = flags.DEFINE_integer(
    "examples", 0, "Number of examples to compare on, drawn at random; 0 for all.", lower_bound=0
)
_SENSITIVITY = flags.DEFINE_bool(
    "sensitivity", False, "Quantizes one stage at a time and writes a table and a figure."
)
_BUDGET = flags.DEFINE_integer(
    "budget", 0, "Bytes of all weights: chooses a format for each stage.", lower_bound=0
)
_BASE = flags.DEFINE_string("base", "", "Base weight file of a run with a delta artifact.")
_DATA_SOURCE = flags.DEFINE_string(
    "data_source", "", "Overrides data.source of the run, for data that was moved."
)
_ALLOW_IMPORTS = cli.define_allow_imports()
_TRUST = cli.define_trust()


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    if _SENSITIVITY.value and _BUDGET.value:
        raise UserError("give either --sensitivity or --budget; --budget writes the table too")
    from finetune_jax.evaluation import quantizing
    from finetune_jax.evaluation.evaluator import best_split, open_run
    from finetune_jax.files import write_json
    from finetune_jax.locks import FolderLock
    from finetune_jax.quantization import parse_rules
    from finetune_jax.reporting.figures import stage_sensitivity

    workdir, output, how = Path(_WORKDIR.value), Path(_OUTPUT.value), _HOW.value
    quantizing.require_empty(output)
    rules = parse_rules(how, "--how")
    formats = [rule.format for rule in rules if rule.format and rule.pattern == ".*"]
    chooses = _SENSITIVITY.value or _BUDGET.value
    if chooses and len(formats) < len(rules):
        raise UserError(f"--how={how}: expected formats alone, such as 'int8, int4'")
    evaluator = open_run(
        workdir,
        base=_BASE.value,
        data_source=_DATA_SOURCE.value,
        allow_imports=_ALLOW_IMPORTS.value,
        trust=_TRUST.value,
    )
    chosen_on = "validation" if evaluator.config.data.validation else "train"
    if _SENSITIVITY.value:
        chosen_on = _SPLIT.value or chosen_on
    with FolderLock(output, f"--output={output}"):
        if chooses:
            comparison = quantizing.Comparison.open(evaluator, chosen_on, _EXAMPLES.value)
            if _BUDGET.value:
                how, rows = quantizing.within_budget(comparison, formats, _BUDGET.value)
                print(f"chosen on {chosen_on}: --how='{how}'")
            else:
                rows = [
                    {**row, "format": str(format_)}
                    for format_ in formats
                    for row in quantizing.sensitivity(comparison, format_)
                ]
            print(_table_of(rows, comparison.artifact.task.metric))
            output.mkdir(parents=True, exist_ok=True)
            stage_sensitivity(rows, output / "sensitivity.png")
        if not _SENSITIVITY.value:
            split = _SPLIT.value or best_split(evaluator.config)
            comparison = quantizing.Comparison.open(evaluator, split, _EXAMPLES.value)
            report = quantizing.quantize_run(comparison, how, split, workdir, output)
            _print(report, split, comparison.artifact.task.metric)
            print(f"artifact  {shown(output)}/artifact")
        if chooses:
            write_json(output / "sensitivity.json", {"split": chosen_on, "rows": rows})


def _table_of(rows: Sequence[dict[str, Any]], metric: str) -> str:
    header = ["stage", "format", "saved", metric, "agreement", "mean logit difference"]
    return table(
        header,
        [
            [
                row["stage"],
                row["format"],
                size(row["saved_bytes"]),
                f"{row[metric]:.4f}",
                "" if row["agreement"] is None else f"{row['agreement']:.2%}",
                f"{row['mean_logit_difference']:.3g}",
            ]
            for row in rows
        ],
        left=2,
    )


def _print(report: dict[str, Any], split: str, metric: str) -> None:
    from finetune_jax.evaluation.scores import headline

    for name, key in (("float32", "scores_float32"), ("quantized", "scores")):
        print(f"{name:9} {split} {headline(metric, report[key])}")
    ratio = report["bytes_float32"] / report["bytes"]
    print(f"bytes     {size(report['bytes_float32'])} to {size(report['bytes'])}, 1/{ratio:.2f}")
    if report["agreement"] is not None:
        print(f"answers   {report['agreement']:.2%} of {report['n']} agree")
    print(
        f"logits    differ by {report['largest_logit_difference']:.3g} at most and "
        f"{report['mean_logit_difference']:.3g} on average; the largest is "
        f"{report['largest_logit']:.3g}"
    )
    ratios = ", ".join(f"{r:.2f} at {n}" for n, r in report["latency_ratio"].items())
    print(f"time      over float32, by batch size: {ratios}")


if __name__ == "__main__":
    cli.run(main)

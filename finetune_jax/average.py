"""Averages fine-tuned models: interpolation between two (WiSE-FT), or a soup of several.

  python -m finetune_jax.average --members=runs/probe,runs/full --output=runs/between
  python -m finetune_jax.average --members=runs/a,runs/b,runs/c --method=greedy --output=runs/soup

Members are run folders of one model on one dataset, under any schemes. Leaves that are equal in all
members stay bit-identical; BatchNorm statistics that differ are recomputed over training images.
Everything is chosen on validation; only the chosen average is scored on the test split. Writes
``artifact/``, ``average.json`` and, for an interpolation, ``average.png``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.tables import shown

_MEMBERS = flags.DEFINE_list(
    "members",
    None,
    "Run folders, separated by commas, or a pattern, such as 'runs/soup_*'.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write, new or empty.", required=True)
_METHOD = flags.DEFINE_enum(
    "method", "interpolate", ["interpolate", "uniform", "greedy"],
    "interpolate: between two members at each of --alphas; uniform: mean of all; greedy: members "
    "added from the best down while validation accuracy does not fall.",
)  # fmt: skip
_ALPHAS = flags.DEFINE_list(
    "alphas", [f"{i / 10:g}" for i in range(11)], "Weights of the second member, in [0, 1]."
)
_BATCHES = flags.DEFINE_integer(
    "statistics_batches", 16, "Training batches for BatchNorm statistics.", lower_bound=1
)
_BASE = flags.DEFINE_string("base", "", "Base weight file of members that are delta artifacts.")
_DATA_SOURCE = flags.DEFINE_string(
    "data_source", "", "Overrides data.source of the runs, for data that was moved."
)
_ALLOW_IMPORTS = cli.define_allow_imports()
_TRUST = cli.define_trust()


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    try:
        alphas = [float(a) for a in _ALPHAS.value]
    except ValueError:
        raise UserError(f"--alphas: expected numbers, found {_ALPHAS.value}") from None
    from finetune_jax.evaluation.averaging import combine
    from finetune_jax.evaluation.scores import headline
    from finetune_jax.locks import FolderLock
    from finetune_jax.reporting.figures import interpolation
    from finetune_jax.run_folders import named_runs

    output = Path(_OUTPUT.value)
    with FolderLock(output, f"--output={output}"):
        report = combine(
            named_runs(_MEMBERS.value),
            output,
            _METHOD.value,
            alphas,
            _BATCHES.value,
            _BASE.value,
            _ALLOW_IMPORTS.value,
            _TRUST.value,
            _DATA_SOURCE.value,
        )
        if report["method"] == "interpolate":
            figure = output / "average.png"
            interpolation(report["rows"], report["members"], report["metric"], figure)
    print(f"chosen on validation: {shown(report['chosen'])}")
    for split, scores in report["scores"].items():
        print(f"{split} {headline(report['metric'], scores)}")
    print(f"artifact  {shown(output)}/artifact")


if __name__ == "__main__":
    cli.run(main)

"""Inspects weight files, and exports fine-tuned models under other projects' names.

  python -m finetune_jax.pretrained inspect SOURCE [--tensors=40]
  python -m finetune_jax.pretrained export --workdir=RUN --origin=timm --output=model.safetensors

SOURCE is a path, or any other value of a config's pretrained.path. `export` takes a run's folder or
an artifact. Before the export, parameters that a scheme added are merged into the model's kernels;
a scheme whose parameters cannot be merged is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError, nearest

_TENSORS = flags.DEFINE_integer("tensors", 40, "Tensors to list; 0 lists all.", lower_bound=0)
_WORKDIR = flags.DEFINE_string("workdir", "", "A run's folder, or its artifact.")
_BASE = flags.DEFINE_string("base", "", "Base weight file of a delta artifact.")
_ORIGIN = flags.DEFINE_string("origin", "", "Origin of the names, such as timm.")
_OUTPUT = flags.DEFINE_string("output", "", "The .safetensors file to write.")
_ALLOW_IMPORTS = cli.define_allow_imports()

_COMMANDS = ("inspect", "export")


def inspect(sources: Sequence[str]) -> None:
    """Prints the tensors of weight files, and the models that fit."""
    from finetune_jax.pretrained import open_weights
    from finetune_jax.pretrained.inspection import report

    if not sources:
        raise UserError("give at least one weight file to inspect")
    for source in sources:
        with open_weights(source) as weights:
            print(f"{source}\n")
            print(report(weights, limit=_TENSORS.value))


def export(rest: Sequence[str]) -> None:
    """Writes a fine-tuned model under another project's names."""
    for name, value in (("workdir", _WORKDIR), ("origin", _ORIGIN), ("output", _OUTPUT)):
        if not value.value:
            raise UserError(f"export needs --{name}")
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}")
    from finetune_jax.artifact import Artifact
    from finetune_jax.deltas import merge
    from finetune_jax.models import entry_of
    from finetune_jax.pretrained import save_as

    artifact = Artifact.load(_WORKDIR.value, _BASE.value, _ALLOW_IMPORTS.value)
    variables, _ = merge(artifact.model, artifact.variables)
    family = entry_of(artifact.card["model"]["name"]).family
    model = artifact.model.model
    save_as(Path(_OUTPUT.value), variables, family, _ORIGIN.value, model.sizes)
    print(f"written: {_OUTPUT.value} ({family}, names of {_ORIGIN.value})")


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = argv[1] if len(argv) > 1 else ""
    if command not in _COMMANDS:
        raise UserError(f"expected one of {', '.join(_COMMANDS)}.{nearest(command, _COMMANDS)}")
    {"inspect": inspect, "export": export}[command](argv[2:])


if __name__ == "__main__":
    cli.run(main)

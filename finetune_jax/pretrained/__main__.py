"""Inspects weight files.

  python -m finetune_jax.pretrained inspect SOURCE [--tensors=40] [--weights=ema] [--prefix=net.]
  python -m finetune_jax.pretrained inspect SOURCE --check_statistics=FOLDER [--model=NAME]

SOURCE is a path, or any other value of a config's pretrained.path. With --check_statistics, the
BatchNorm statistics of the file are compared with those of the images in a folder, stage by stage:
names and shapes do not show a wrong stride, padding, activation or range of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from finetune_jax.pretrained import Selection, Weights

_TENSORS = flags.DEFINE_integer("tensors", 40, "Tensors to list; 0 lists all.", lower_bound=0)
_CHECK = flags.DEFINE_string(
    "check_statistics", "", "A folder of images of the kind that the model was trained on."
)
_MODEL = flags.DEFINE_string("model", "", "The model to check; needed if several models fit.")
_WEIGHTS = flags.DEFINE_string("weights", "", "Of several sets of weights: see pretrained.weights.")
_PREFIX = flags.DEFINE_string("prefix", "", "Text before the names: see pretrained.prefix.")
_IMAGES = flags.DEFINE_integer("images", 64, "Most images to read for the check.", lower_bound=1)

_COMMANDS = ("inspect",)


def inspect(sources: Sequence[str]) -> None:
    """Prints the tensors of weight files, and the models that fit.

    Raises:
      UserError: no source is given, or a file or folder cannot be read.
    """
    from finetune_jax.pretrained import Selection, open_weights
    from finetune_jax.pretrained.inspection import report

    if not sources:
        raise UserError("give at least one weight file to inspect")
    selection = Selection(_WEIGHTS.value, _PREFIX.value)
    images = _images(Path(_CHECK.value)) if _CHECK.value else []
    for source in sources:
        with open_weights(source, selection.weights) as weights:
            print(f"{source}\n")
            print(report(weights, limit=_TENSORS.value, selection=selection))
            model = _MODEL.value or (_only_model(weights, selection) if images else "")
        if images:
            from finetune_jax.evaluation.statistics_check import check_file, verdict

            print(f"\n{model}, {len(images)} images of {_CHECK.value}\n")
            print(verdict(check_file(source, model, images, selection)))


def _images(folder: Path) -> list[Path]:
    """Image files under a folder, evenly chosen."""
    from finetune_jax.data.images import SUFFIXES

    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"--check_statistics={folder}: no image files there")
    return found[:: max(1, -(-len(found) // _IMAGES.value))]


def _only_model(weights: Weights, selection: Selection) -> str:
    """The only registered model that fits a file."""
    from finetune_jax.pretrained.inspection import inspect as look

    models = sorted({model for fit in look(weights, selection).fits for model in fit.models})
    if len(models) != 1:
        raise UserError(
            f"{weights.path}: {len(models)} models fit ({', '.join(models[:20])}); name one with "
            "--model"
        )
    return models[0]


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = argv[1] if len(argv) > 1 else ""
    if command not in _COMMANDS:
        raise UserError(f"expected one of {', '.join(_COMMANDS)}.{nearest(command, _COMMANDS)}")
    inspect(argv[2:])


if __name__ == "__main__":
    cli.run(main)

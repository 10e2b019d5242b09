"""The main job end to end: four schemes, one table, a figure, an artifact and a prediction.

python -m finetune_jax.quickstart --config=configs/quickstart.py --workdir=DIR
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.interruption import Interrupted
from finetune_jax.locks import FolderLock

if TYPE_CHECKING:
    from finetune_jax.schemes import Plan
    from finetune_jax.setup import Setup

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the runs; made anew.")
flags.mark_flag_as_required("config")


def make_anew(folder: Path) -> None:
    """Removes what an earlier quickstart wrote to a folder, and creates the folder.

    Raises:
      UserError: the folder holds files that no quickstart has written.
    """
    marker = folder / ".quickstart"
    if folder.exists() and any(folder.iterdir()) and not marker.is_file():
        raise UserError(
            f"{folder} was not made by the quickstart and is left as it is; use another --workdir"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.write_text("The next quickstart removes this folder.\n")


def _row(result: dict[str, Any], plan: Plan) -> list[str]:
    from finetune_jax.tables import count, size

    trainable = sum(math.prod(leaf.shape) for leaf in plan.leaves if leaf.trains)
    total = sum(math.prod(leaf.shape) for leaf in plan.leaves)
    test = result["test"]
    return [
        result["scheme"],
        f"{trainable:,}",
        f"{trainable / total:.1%}",
        count(result["cost"]["flops"]),
        size(result["cost"]["optimizer_bytes"]),
        f"{test['accuracy']:.1%} [{test['accuracy_low']:.1%}, {test['accuracy_high']:.1%}]",
        f"{result['seconds']:.1f}",
    ]


def main(_: Sequence[str]) -> None:
    """The command."""
    workdir = Path(_WORKDIR.value)
    with FolderLock(workdir, f"--workdir={workdir}"):
        try:
            _run(workdir)
        except Interrupted as error:
            text = "interrupted; the same command begins anew"
            raise Interrupted(error.number, text, saved=True) from None


def _run(workdir: Path) -> None:
    from finetune_jax.artifact import Artifact
    from finetune_jax.progress import say
    from finetune_jax.reporting.figures import accuracy_against_cost
    from finetune_jax.setup import open_setup
    from finetune_jax.tables import table
    from finetune_jax.training.loop import train

    # The flag of ml_collections has the path; the class of all flags does not.
    path = cast(Any, flags.FLAGS["config"]).config_filename
    results, rows = [], []
    schemes = cli.config_constant(path, "QUICKSTART")
    folders = [workdir / re.sub(r"\W+", "_", scheme).strip("_") for scheme in schemes]
    # Checked before the first run, so that an error does not come after minutes of training.
    for folder in folders:
        make_anew(folder)
    for (scheme, learning_rate), folder in zip(schemes.items(), folders, strict=True):
        config = _CONFIG.value.copy_and_resolve_references()
        with config.ignore_type():
            config.scheme = scheme
        config.optimizer.learning_rate = learning_rate
        say(f"\n{scheme}")
        setup = open_setup(config)
        result = train(setup, folder)
        results.append((result, folder))
        rows.append(_row(result, setup.plan))

    n = results[0][0]["test"]["n_scored"]
    header = ["scheme", "trainable", "share", "step FLOPs, prefix cached", "optimizer"]
    header += [f"test accuracy, n={n} [95 % interval]", "seconds"]
    print("\n" + table(header, rows))
    figure = workdir / "quickstart.png"
    about = f"{config.model.name} fine-tuned to {config.data.source}, {n:,} test images"
    accuracy_against_cost([r for r, _ in results], figure, about)

    # The artifact to keep is chosen on validation, never on the test split.
    best, folder = max(results, key=lambda pair: pair[0]["validation"]["accuracy"])
    image = workdir / "digit.png"
    label = _write_test_image(setup, image)
    answer = Artifact.load(folder).predict([image])[0]
    top = list(answer["probabilities"].items())[:3]
    print(f"\nfigure    {figure}\nartifact  {folder / 'artifact'} ({best['scheme']})")
    print(f"predicted {image} (a {label}): " + ", ".join(f"{c} {p:.1%}" for c, p in top))
    print(
        f"\nNext:\n"
        f"  python -m finetune_jax.predict --workdir={folder} {image} --json\n"
        f"  python -m finetune_jax.plan --config={path} "
        f"--config.scheme='first_k(3) + linear_probe'\n"
        f"  python -m finetune_jax.train --config={path} --workdir=runs/mine "
        f"--config.scheme=\"stages('layer2_.*') + linear_probe\""
    )


def _write_test_image(setup: Setup, path: Path) -> str:
    """Writes the first test image as a file; returns its class name."""
    from PIL import Image

    example = setup.source.read(setup.config.data.test)[0]
    Image.fromarray(example["image"]).save(path)
    return setup.source.class_names[example["label"]]


if __name__ == "__main__":
    cli.run(main)

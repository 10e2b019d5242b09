"""Writes the artifact of a run without what tells where and of what it was made.

  python -m finetune_jax.release --workdir=runs/a --output=a_released

The weights, the plan, the preprocessing, the class names, the scores, and name and checksum of the
base stay; `predict` and `export` read the folder. Paths are shortened to the names of their files;
the config, checkpoints, metrics, predictions, and digests of the data are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from finetune_jax import cli
from finetune_jax.tables import shown

_WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder, or its artifact.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write, new or empty.", required=True)


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    from finetune_jax.artifact.release import release

    for line in release(Path(_WORKDIR.value), Path(_OUTPUT.value)):
        print(f"left out  {shown(line)}")
    print(f"released  {shown(_OUTPUT.value)}")


if __name__ == "__main__":
    cli.run(main)

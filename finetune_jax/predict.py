"""Predicts image files or texts from an artifact alone: no config, no data, no base weights.

  python -m finetune_jax.predict --workdir=DIR IMAGE [IMAGE …] [--json] [--top=5]
  python -m finetune_jax.predict --workdir=DIR TEXT [TEXT …]

DIR is a run's folder or the artifact itself, also after it was moved. Prints class names with
probabilities, most probable first, or the values of another task; --json prints all values. A pair
of texts or of image files is one argument with a tab between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.tables import shown

_WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder, or its artifact.", required=True)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON array with all probabilities.")
_TOP = flags.DEFINE_integer("top", 3, "Classes to show per image.", lower_bound=1)
_BASE = flags.DEFINE_string("base", "", "Base weight file of a delta artifact.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Items per batch.", lower_bound=1)
_ALLOW_IMPORTS = cli.define_allow_imports()


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) < 2:
        raise UserError("give at least one image file or text")
    from finetune_jax.artifact import Artifact

    artifact = Artifact.load(_WORKDIR.value, _BASE.value, _ALLOW_IMPORTS.value)
    results = artifact.predict(argv[1:], _BATCH_SIZE.value)
    if _JSON.value:
        print(json.dumps(results, indent=1, allow_nan=False))
        return
    for result in results:
        # The first entry is the item itself, an image file or a text.
        (_, item), *values = result.items()
        if "probabilities" in result:
            top = list(result["probabilities"].items())[: _TOP.value]
            print(f"{shown(item)}: " + ", ".join(f"{shown(name)} {p:.1%}" for name, p in top))
        else:
            rest = ", ".join(f"{shown(name)} {_short(value)}" for name, value in values)
            print(f"{shown(item)}: {rest}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


if __name__ == "__main__":
    cli.run(main)

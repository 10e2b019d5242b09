"""Predicts image files or texts from an artifact alone: no config, no data, no base weights.

  python -m finetune_jax.predict --workdir=DIR IMAGE [IMAGE …] [--json] [--top=5]
  python -m finetune_jax.predict --workdir=DIR TEXT [TEXT …]

DIR is a run's folder or the artifact itself, wherever it was moved to. Prints class names with
probabilities, most probable first, or what else the task reads; --json all of it. A pair of texts
or of image files is one argument with a tab between them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder, or its artifact.", required=True)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON array with all probabilities.")
_TOP = flags.DEFINE_integer("top", 3, "Classes to show per image.", lower_bound=1)
_BASE = flags.DEFINE_string("base", "", "Base weight file of a delta artifact.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) < 2:
        raise UserError("give at least one image file or text")
    from finetune_jax.artifact import load_artifact

    results = load_artifact(Path(_WORKDIR.value), _BASE.value).predict(argv[1:])
    if _JSON.value:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        # What was given, an image or a text, comes first.
        (_, given), *told = result.items()
        if "probabilities" in result:
            top = list(result["probabilities"].items())[: _TOP.value]
            print(f"{given}: " + ", ".join(f"{name} {p:.1%}" for name, p in top))
        else:
            print(f"{given}: " + ", ".join(f"{name} {_short(value)}" for name, value in told))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


if __name__ == "__main__":
    cli.run(main)

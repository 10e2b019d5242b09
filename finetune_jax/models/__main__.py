"""Lists the models: size, cost, input, published weights, licence.

  python -m finetune_jax.models [NAME-REGEX] [--flops] [--json]

FLOPs are those that XLA estimates for the forward pass of one example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.files import plain

_FLOPS = flags.DEFINE_bool("flops", True, "Count the operations of a forward pass.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON array instead of the table.")


def describe(name: str, *, flops: bool) -> dict[str, Any]:
    """Describes a model from the registry and from its abstract variables, without any weights.

    Args:
      name: name of the model, see `entry_of`.
      flops: whether to count the operations of a forward pass.

    Returns:
      ``name``, ``family``, ``parameters``, ``flops`` of a forward pass of one example (None without
      `flops`), ``input`` (side in pixels, or tokens), ``mean``, ``std``, ``interpolation``,
      ``crop``, ``channels``, ``classes``, ``labels``, ``weights``, ``licence``.
    """
    import jax

    from finetune_jax import tree
    from finetune_jax.models import build, entry_of, initial_variables

    entry = entry_of(name)
    model = build(name, max(entry.classes, 1))
    abstract = initial_variables(model, entry.image_size, stages=())
    operations = None
    if flops:
        lowered = jax.jit(model.apply).lower(abstract, model.example(entry.image_size))
        # The analysis reads the lowered program, because compiling all models would take an hour.
        operations = int((lowered.cost_analysis() or {})["flops"])
    inputs = entry.inputs
    return {
        "name": name,
        "family": entry.family,
        "parameters": tree.size(abstract["params"]),
        "flops": operations,
        "input": inputs.size,
        "mean": inputs.mean,
        "std": inputs.std,
        "interpolation": inputs.interpolation,
        "crop": inputs.crop,
        "channels": inputs.channels,
        "classes": entry.classes,
        "labels": entry.labels,
        "weights": entry.weights,
        "licence": entry.licence,
    }


def main(argv: Sequence[str]) -> None:
    """The command."""
    from finetune_jax.models import MODELS
    from finetune_jax.progress import each
    from finetune_jax.tables import count, table

    pattern = argv[1] if len(argv) > 1 else ".*"
    try:
        names = [name for name in MODELS if re.fullmatch(pattern, name)]
    except re.error as error:
        raise UserError(f"{pattern!r}: not a regular expression: {error}") from None
    if not names:
        names = [name for name in MODELS if pattern in name]
    if not names:
        raise UserError(f"no model called {pattern!r}; without an argument all are listed")
    found = [describe(name, flops=_FLOPS.value) for name in each(names, "models")]
    if _JSON.value:
        print(json.dumps(plain(found), indent=1, allow_nan=False))
        return
    rows = [
        [
            m["name"],
            ", ".join(m["weights"]) or "-",
            m["licence"] or "-",
            count(m["parameters"]),
            count(m["flops"]) if m["flops"] else "-",
            str(m["input"]),
            str(m["classes"] or "-"),
        ]
        for m in found
    ]
    header = ["model", "published weights", "licence", "parameters", "FLOPs", "input", "classes"]
    print(table(header, rows, left=3))


if __name__ == "__main__":
    cli.run(main)

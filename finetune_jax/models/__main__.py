"""Lists the models: size, cost, input, published weights, licence.

  python -m finetune_jax.models [NAME-REGEX] [--json]
  python -m finetune_jax.models [NAME-REGEX] --update

FLOPs are those that XLA estimates for the forward pass of one example. The list is read from
catalogue.json, which lies beside the registry. After a change of the registry, --update describes
the matching models anew, or all of them, which takes minutes because each model is traced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.files import plain, read_json, write_json
from finetune_jax.models.spellings import CATALOGUE, spelled, unknown
from finetune_jax.tables import count, table

"""The file of all descriptions, by the name of the model; see `describe`."""

_JSON = flags.DEFINE_bool("json", False, "Print one JSON array instead of the table.")
_UPDATE = flags.DEFINE_bool("update", False, "Describe the models of the registry anew.")


def describe(name: str) -> dict[str, Any]:
    """Describes a model from the registry and from its abstract variables, without any weights.

    Args:
      name: name of the model, see `entry_of`.

    Returns:
      what `constants` returns, and ``parameters`` and ``flops`` of a forward pass of one example.
    """
    import jax

    from finetune_jax import tree
    from finetune_jax.models import build, entry_of, initial_variables

    entry = entry_of(name)
    model = build(name, max(entry.classes, 1))
    abstract = initial_variables(model, entry.image_size, stages=())
    lowered = jax.jit(model.apply).lower(abstract, model.example(entry.image_size))
    # The analysis reads the lowered program, because compiling all models would take an hour.
    operations = int((lowered.cost_analysis() or {})["flops"])
    return {**constants(name), "parameters": tree.size(abstract["params"]), "flops": operations}


def constants(name: str) -> dict[str, Any]:
    """What the registry alone says about a model; nothing is traced.

    Args:
      name: name of the model, see `entry_of`.

    Returns:
      ``name``, ``family``, ``input`` (side in pixels, or tokens), ``mean``, ``std``,
      ``interpolation``, ``crop``, ``channels``, ``classes``, ``labels``, ``weights``, ``licence``.
    """
    from finetune_jax.models import entry_of

    entry = entry_of(name)
    inputs = entry.inputs
    return {
        "name": name,
        "family": entry.family,
        "input": inputs.size,
        "mean": list(inputs.mean),
        "std": list(inputs.std),
        "interpolation": inputs.interpolation,
        "crop": inputs.crop,
        "channels": inputs.channels,
        "classes": entry.classes,
        "labels": entry.labels,
        "weights": list(entry.weights),
        "licence": entry.licence,
    }


def update(pattern: str) -> None:
    """Describes the models whose names match anew, and writes the catalogue of all models."""
    from finetune_jax.models import MODELS
    from finetune_jax.progress import each

    known = read_json(CATALOGUE) if CATALOGUE.exists() else {}
    anew = {*_matching(pattern, MODELS)} | MODELS.keys() - known.keys()
    known |= {name: describe(name) for name in each([m for m in MODELS if m in anew], "models")}
    write_json(CATALOGUE, {name: known[name] for name in MODELS})
    print(f"written: {CATALOGUE} ({len(MODELS)} models, {len(anew)} described anew)")


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern matches or, if it matches none, that contain the pattern."""
    names = [*names]
    try:
        found = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise UserError(f"{pattern!r}: not a regular expression: {error}") from None
    found = found or [name for name in names if pattern in name]
    if not found and (known := spelled(pattern)):
        found = [known.model]
    if not found:
        raise UserError(f"no model called {pattern!r}.{unknown(pattern)} without an argument.")
    return found


def main(argv: Sequence[str]) -> None:
    """The command."""
    pattern = argv[1] if len(argv) > 1 else ".*"
    if _UPDATE.value:
        update(pattern)
        return
    models = read_json(CATALOGUE)
    found = [models[name] for name in _matching(pattern, models)]
    if _JSON.value:
        print(json.dumps(plain(found), indent=1, allow_nan=False))
        return
    rows = [
        [
            m["name"],
            ", ".join(m["weights"]) or "-",
            m["licence"] or "-",
            count(m["parameters"]),
            count(m["flops"]),
            str(m["input"]),
            str(m["classes"] or "-"),
        ]
        for m in found
    ]
    header = ["model", "published weights", "licence", "parameters", "FLOPs", "input", "classes"]
    print(table(header, rows, left=3))


if __name__ == "__main__":
    cli.run(main)

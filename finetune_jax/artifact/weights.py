"""The leaves of an artifact: from its own file and, for a ``delta`` artifact, from its base."""

from __future__ import annotations

import functools
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import jax

from finetune_jax import tree
from finetune_jax.deltas import Delta
from finetune_jax.errors import UserError
from finetune_jax.models import DTYPES, StagedModel, initial_variables
from finetune_jax.pretrained import Selection, load, open_weights
from finetune_jax.pretrained.surgery import KINDS
from finetune_jax.pretrained.values import require_good_values
from finetune_jax.quantization import Format, is_weight, parse_format, quantize_leaf

FILE = "model.safetensors"


def read_variables(
    folder: Path, card: dict[str, Any], model: StagedModel, deltas: Sequence[Delta], base: str
) -> dict[str, Any]:
    """Reads and checks the variables of an artifact.

    Args:
      folder: the artifact.
      card: content of its ``artifact.json``.
      model: staged model, without deltas.
      deltas: deltas of the model.
      base: path of the pretrained weight file; needed for a ``delta`` artifact only.

    Returns:
      ``{"params": …, "batch_stats": …}``.

    Raises:
      UserError: a missing or changed file, a missing or wrong base, or leaves that do not fit the
        model.
    """
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{file}: missing")
    with open_weights(file) as weights:
        leaves = {name: weights.read(name) for name in weights.names()}
    formats = {
        f"params/{path}": parse_format(text, f"{folder}: quantized")
        for path, text in card.get("quantized", {}).items()
    }
    if card["contents"] == "delta":
        found = _base_leaves(folder, card, model, leaves.keys(), base)
        leaves = {**_with_codes(found, formats, str(folder)), **leaves}
    expected = _expected_leaves(model, deltas, card["preprocess"]["size"])
    expected = _with_codes(expected, formats, str(folder))
    _require_fit(leaves, expected, f"{file} does not fit {card['model']['name']}")
    nested = tree.unflatten(leaves)
    variables = {"params": nested["params"], "batch_stats": nested.get("batch_stats", {})}
    if tree.fingerprint(variables) != card["fingerprint"]:
        raise UserError(
            f"{file}: its content does not have the fingerprint of artifact.json; it was changed"
        )
    require_good_values(variables, str(file))
    return variables


def _base_leaves(
    folder: Path, card: dict[str, Any], model: StagedModel, changed: Set[str], base: str
) -> dict[str, Any]:
    """The leaves of the base by path, in the dtypes in which the run kept them."""
    if not base:
        raise UserError(
            f"{folder} holds only what differs from {card['base']['file']!r}; give that file "
            f"with --base"
        )
    size = card["preprocess"]["size"]
    initial = initial_variables(model, size, stages=("head", *model.fresh_stages))
    # The base may lack a head that the artifact holds completely.
    head = {path for path in tree.flatten(initial) if path.split("/")[1] == "head"}
    variables, manifest = load(
        base,
        card["model"]["family"],
        initial,
        model,
        name_map=card["base"].get("name_map", ""),
        reinitialise_head=head <= changed,
        # All kinds of surgery are allowed here: the fingerprint shows whether the result is the
        # same as in the run.
        resize=KINDS,
        selection=Selection(
            card["base"].get("weights", ""),
            card["base"].get("prefix", ""),
            names=tuple(card["base"].get("ignored", ())),
        ),
    )
    if manifest.sha256 != card["base"]["sha256"]:
        raise UserError(f"{base} is not the file this artifact started from")
    leaves = tree.flatten(variables)
    for path, dtype in card.get("base_dtypes", {}).items():
        if path not in leaves:
            raise UserError(f"{folder}: base_dtypes: the base has no leaf {path!r:.80}")
        leaves[path] = leaves[path].astype(DTYPES[dtype])
    return leaves


def _with_codes(leaves: dict[str, Any], formats: dict[str, Format], folder: str) -> dict[str, Any]:
    """The leaves, or shape structs, with codes and scales in the place of quantized leaves."""
    leaves = dict(leaves)
    for path, format_ in formats.items():
        if path not in leaves or not is_weight(path, leaves[path]):
            raise UserError(f"{folder}: quantized: the model has no weight {path!r:.80}")
        leaf = leaves.pop(path)
        encode = functools.partial(quantize_leaf, path, format_=format_)
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        new = jax.eval_shape(encode, leaf) if abstract else jax.jit(encode)(leaf)
        parts = new if isinstance(new, dict) else {"": new}
        leaves |= {f"{path}/{name}".rstrip("/"): x for name, x in parts.items()}
    return leaves


def _expected_leaves(model: StagedModel, deltas: Sequence[Delta], size: int) -> dict[str, Any]:
    """Shape structs of all leaves, the leaves of deltas included, by path with their collection."""
    expected = tree.flatten(initial_variables(model, size, stages=()))
    base = {p.removeprefix("params/"): x for p, x in expected.items() if p.startswith("params/")}
    for delta in deltas:
        for module in delta.modules:
            if not any(path.startswith(f"{module}/") for path in base):
                raise UserError(f"delta {delta.kind!r}: the model has no module {module!r:.80}")
        for path, leaf in delta.leaves(base).items():
            expected[f"params/{path}"] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return expected


def _require_fit(leaves: dict[str, Any], expected: dict[str, Any], message: str) -> None:
    """Raises UserError with all paths that are missing, superfluous or of another shape."""
    wrong = [
        f"{path}: expected {tuple(leaf.shape)}, found "
        f"{leaves[path].shape if path in leaves else 'nothing'}"
        for path, leaf in expected.items()
        if path not in leaves or leaves[path].shape != tuple(leaf.shape)
    ]
    wrong += [f"{path}: not in the model" for path in sorted(leaves.keys() - expected.keys())]
    if wrong:
        raise UserError(f"{message}: {'; '.join(wrong)}")

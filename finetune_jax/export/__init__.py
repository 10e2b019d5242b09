"""Writes trained models in formats that others read, with proof that each is still the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from finetune_jax.artifact import Artifact
from finetune_jax.data.examples import Examples
from finetune_jax.deltas import Adapted, merge
from finetune_jax.deltas.adapted import unmergeable
from finetune_jax.export import agreement
from finetune_jax.export.card import model_card
from finetune_jax.export.formats import FORMATS, Model, format_of
from finetune_jax.files import write_json, write_text
from finetune_jax.new_folder import new_folder, require_new
from finetune_jax.quantization import quantized_leaves

__all__ = ["FORMATS", "Model", "export", "merged", "require"]


def merged(artifact: Artifact, merges: bool | None) -> Artifact:
    """An artifact with its deltas merged into the kernels of the model.

    Args:
      artifact: the artifact.
      merges: whether to merge; None merges where every delta can be merged and the base is not
        quantized, because a merged base is no longer quantized.

    Raises:
      UserError: `merges` is True, and a delta cannot be merged.
    """
    model, variables = artifact.model, artifact.variables
    if merges is None:
        merges = not unmergeable(model.model, model.deltas) and not quantized_leaves(
            variables["params"]
        )
    if not merges or not model.deltas:
        return artifact
    variables, _ = merge(model, variables)
    return dataclasses.replace(artifact, model=Adapted(model.model), variables=variables)


def require(model: Model, name: str, output: Path) -> None:
    """Checks what can be checked before anything is computed.

    Args:
      model: what to export, with its deltas merged or not.
      name: name of the format.
      output: the folder to write.

    Raises:
      UserError: the output has content, or the format cannot hold the model.
    """
    require_new(output)
    format_of(name).require(model)


def export(model: Model, name: str, output: Path, examples: Examples) -> dict[str, Any]:
    """Writes a model in a format, compares the two on examples, and describes the result.

    The folder is complete or absent: it is written under another name and renamed after the
    comparison.

    Args:
      model: what to export.
      name: name of the format, a key of `FORMATS`.
      output: the folder to write, new or empty.
      examples: examples as a data source has them, at least one.

    Returns:
      The content of ``agreement.json``, see `agreement.compare`.

    Raises:
      UserError: as `require`; or the written model has other outputs.
    """
    require(model, name, output)
    format_ = format_of(name)
    with new_folder(output) as folder:
        format_.write(model, folder)
        found = agreement.compare(model.artifact, format_.opened(model, folder), examples)
        agreement.require_agreement(found)
        write_json(folder / agreement.FILE, found)
        write_text(folder / "README.md", model_card(model, name, found))
    return found

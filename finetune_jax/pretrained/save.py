"""Saves a model's variables under our own names, or under those of another project."""

from __future__ import annotations

import os
from collections.abc import Mapping

from finetune_jax import tree
from finetune_jax.pretrained.formats.safetensors_file import write_safetensors
from finetune_jax.pretrained.maps import map_of

COLLECTIONS = ("params", "batch_stats")


def save_native(
    path: str | os.PathLike[str], variables: tree.Tree, metadata: Mapping[str, str]
) -> None:
    """Saves variables under our own names, ``params/<leaf path>`` and ``batch_stats/<leaf path>``.

    The file is whole or absent, whenever the writing stops.

    Args:
      path: ends in ``.safetensors``; an existing file is replaced.
      variables: ``{'params': nested, 'batch_stats': nested}`` of NumPy or JAX arrays.
      metadata: kept in the file's header.

    Raises:
      UserError: another suffix, or a folder that cannot be written to.
      ValueError: a collection of another name.
    """
    unknown = variables.keys() - set(COLLECTIONS)
    if unknown:
        raise ValueError(f"expected the collections {COLLECTIONS}, found {sorted(unknown)}")
    write_safetensors(path, tree.flatten(variables), metadata)


def save_as(
    path: str | os.PathLike[str],
    variables: tree.Tree,
    family: str,
    origin: str,
    sizes: Mapping[str, int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Saves variables as another project names and lays them out, so that it loads them strictly.

    Tensors that our models have no place for, such as torch's counters of batches, are not written.

    Args:
      path: ends in ``.safetensors``; an existing file is replaced.
      variables: ``{'params': nested, 'batch_stats': nested}``, all of the model.
      family: of the model.
      origin: whose names to use, such as ``timm``.
      sizes: `StagedModel.sizes` of the model.
      metadata: kept in the file's header; ``format: pt`` by default, which transformers asks for.

    Raises:
      UserError: an unknown origin, a leaf that it cannot express, or a folder that cannot be
        written to.
    """
    tensors = map_of(family, origin).write(tree.flatten(variables), sizes)
    write_safetensors(path, tensors, {"format": "pt"} if metadata is None else metadata)

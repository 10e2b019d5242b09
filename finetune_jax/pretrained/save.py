"""Saves a model's variables under our own names."""

from __future__ import annotations

import os
from collections.abc import Mapping

from finetune_jax import tree
from finetune_jax.pretrained.safetensors_file import write_safetensors

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

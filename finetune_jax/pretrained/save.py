"""Saves a model's variables under our own names, or under the names of another project."""

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

    An interrupted call leaves either the complete file or no new file.

    Args:
      path: ends in ``.safetensors``; an existing file is replaced.
      variables: ``{'params': nested, 'batch_stats': nested}`` of NumPy or JAX arrays.
      metadata: texts for the file's header.

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
    """Saves variables with the names and layouts of another project, which loads them strictly.

    Tensors that our models do not have, such as torch's counters of batches, are not written.

    Args:
      path: ends in ``.safetensors``; an existing file is replaced.
      variables: ``{'params': nested, 'batch_stats': nested}``, all leaves of the model.
      family: family of the model.
      origin: origin of the names, such as ``timm``, or the door of a name map; see `map_of`.
      sizes: `StagedModel.sizes` of the model.
      metadata: texts for the file's header; by default ``format: pt``, which transformers needs.

    Raises:
      UserError: the origin is unknown, the origin cannot express a leaf, or the folder cannot be
        written to.
    """
    tensors = map_of(family, origin).write(tree.flatten(variables), sizes)
    write_safetensors(path, tensors, {"format": "pt"} if metadata is None else metadata)

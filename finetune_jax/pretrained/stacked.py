"""Tensors that stack all layers of a model along the first axis, as `nn.scan` saves them."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from finetune_jax.pretrained.formats.weights import Spec, Weights
from finetune_jax.pretrained.names import NameMap


def unstack(weights: Weights, name_maps: Iterable[NameMap]) -> Weights:
    """The same file, in which each row of a stacked tensor is a tensor.

    Args:
      weights: an open file; closing the result closes this file.
      name_maps: a tensor ``a/b`` is split if one of these name maps does not know ``a/b``, but has
        a rule for its first row, ``a/b[0]``.

    Returns:
      The file with ``a/b[0]``, ``a/b[1]``, … in the place of ``a/b``; `weights` itself if the file
      has no such tensor.
    """
    sliced = [m for m in name_maps if any(rule.source.endswith("]") for rule in m.rules)]

    def is_stack(name: str) -> bool:
        if not weights.spec(name)[0]:
            return False
        return any(
            not m.targets(name) and m.ignored(name) is None and m.targets(f"{name}[0]")
            for m in sliced
        )

    rows: dict[str, tuple[str, int]] = {}
    specs: dict[str, Spec] = {}
    for name in weights.names():
        shape, dtype = weights.spec(name)
        if not is_stack(name):
            specs[name] = (shape, dtype)
            continue
        for i in range(shape[0]):
            rows[f"{name}[{i}]"] = (name, i)
            specs[f"{name}[{i}]"] = (shape[1:], dtype)
    if not rows:
        return weights
    # Rows are read one after the other, and a compressed tensor can only be read completely.
    read_stack = functools.lru_cache(maxsize=1)(weights.read)

    def read(name: str) -> np.ndarray:
        if name not in rows:
            return weights.read(name)
        stack, i = rows[name]
        return read_stack(stack)[i]

    return Weights(
        weights.path,
        specs,
        read,
        weights.close,
        weights.other_entries,
        weights.metadata,
        weights.files,
    )

"""Tensors that stack all layers of a model along the first axis, as `nn.scan` saves them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable

import numpy as np

from finetune_jax.pretrained.formats.weights import Spec, Weights
from finetune_jax.pretrained.names import NameMap


def unstack(
    weights: Weights,
    name_maps: Iterable[NameMap],
    short: Callable[[str], str] = lambda name: name,
    skip: Collection[str] = (),
) -> Weights:
    """The same file, in which each row of a stacked tensor is a tensor.

    Args:
      weights: an open file; closing the result closes this file.
      name_maps: a tensor ``a/b`` is split if one of these name maps does not know ``a/b``, but has
        a rule for its first row, ``a/b[0]``.
      short: function that takes the prefix of the file off a name, for the name maps.
      skip: names of tensors that stay as they are.

    Returns:
      The file with ``a/b[0]``, ``a/b[1]``, … in the place of ``a/b``; `weights` itself if the file
      has no such tensor.
    """
    sliced = [m for m in name_maps if any(rule.source.endswith("]") for rule in m.rules)]

    def is_stack(name: str) -> bool:
        if name in skip or not weights.spec(name)[0]:
            return False
        name = short(name)
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

    return weights.view(specs, read)

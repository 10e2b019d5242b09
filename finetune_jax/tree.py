"""Leaf paths: the '/'-joined keys of an array in a nested dict, and what can be done with them.

Every other room names parameters by leaf path (``block_3/attn/query/kernel``) and nothing else, so
that a plan, a manifest, a checkpoint and an error message all speak of the same thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

Tree = Mapping[str, Any]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Returns ``{leaf path: leaf}`` of a nested dict, in the dict's own order.

    Empty sub-dicts vanish. Raises ValueError if a key holds '/', which would make paths ambiguous.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if "/" in key:
            raise ValueError(f"the key {key!r} under {prefix!r} holds a '/'")
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            flat.update(flatten(value, path))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; raises ValueError where one path runs through another's leaf."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} runs through a leaf")
        if name in node:
            raise ValueError(f"{path!r} is given twice, or is a leaf and a branch")
        node[name] = leaf
    return tree


def split(tree: Tree, paths: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits into (leaves whose path is in `paths`, all others), both nested and without holes."""
    chosen = frozenset(paths)
    flat = flatten(tree)
    missing = chosen - flat.keys()
    if missing:
        raise KeyError(f"no such leaves: {sorted(missing)[:5]}")
    inside = {path: leaf for path, leaf in flat.items() if path in chosen}
    outside = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten(inside), unflatten(outside)


def merge(left: Tree, right: Tree) -> dict[str, Any]:
    """The inverse of `split`; raises ValueError if a leaf is in both halves."""
    flat, other = flatten(left), flatten(right)
    both = flat.keys() & other.keys()
    if both:
        raise ValueError(f"leaves in both halves: {sorted(both)[:5]}")
    return unflatten({**flat, **other})


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> dict[str, Any]:
    """``fn(leaf path, leaf, *leaves of rest)`` over every leaf, keeping the nesting."""
    others = [flatten(r) for r in rest]
    return unflatten({p: fn(p, leaf, *(o[p] for o in others)) for p, leaf in flatten(tree).items()})


def size(tree: Any) -> int:
    """Number of scalars in all leaves of any pytree of arrays or shape structs."""
    return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(tree)))


def nbytes(tree: Any) -> int:
    """Bytes of all leaves of any pytree of arrays or shape structs."""
    return int(
        sum(
            np.prod(leaf.shape, dtype=np.int64) * np.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def on_host(array: Any) -> np.ndarray:
    """The values of an array; of one cut over several processes all of them must ask."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        from jax.experimental.multihost_utils import process_allgather

        return process_allgather(array, tiled=True)
    return np.asarray(array)


def checksum(array: Any) -> str:
    """SHA-256 (hex) of dtype, shape and the C-ordered bytes of one array."""
    array = on_host(array)
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fingerprint(tree: Tree) -> str:
    """SHA-256 (hex) over sorted leaf paths and their checksums: equal iff bit-identical."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        digest.update(f"{path}={checksum(leaf)};".encode())
    return digest.hexdigest()


def leaf_checksums(tree: Tree) -> dict[str, str]:
    """``{leaf path: checksum}`` of every leaf."""
    return {path: checksum(leaf) for path, leaf in flatten(tree).items()}

"""Leaf paths: the '/'-joined keys of an array in a nested dict, and operations on such trees.

All modules name a parameter by its leaf path (``block_3/attn/query/kernel``). So a plan, a
manifest, a checkpoint and an error message use the same name for the same array.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Mapping[str, Any]
"""A nested dict with string keys, whose leaves are arrays or shape structs."""


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Returns ``{leaf path: leaf}`` of a nested dict, in the order of the dict.

    Empty sub-dicts have no leaf path and are left out.

    Args:
      tree: the nested dict.
      prefix: leaf path that is put before every path of the result.

    Raises:
      ValueError: a key contains '/', which would make leaf paths ambiguous.
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
    """Returns the nested dict of ``{leaf path: leaf}``; the inverse of `flatten`.

    Raises:
      ValueError: a leaf path is given twice, or a leaf path continues another leaf path.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"a part of the path {path!r} is itself a leaf")
        if name in node:
            raise ValueError(f"the path {path!r} is given twice, or is both a leaf and a branch")
        node[name] = leaf
    return tree


def split(tree: Tree, paths: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (leaves whose path is in `paths`, all other leaves), both as nested dicts.

    Raises:
      KeyError: `paths` has a path that the tree does not have.
    """
    chosen = frozenset(paths)
    flat = flatten(tree)
    missing = chosen - flat.keys()
    if missing:
        raise KeyError(f"no such leaves: {sorted(missing)[:5]}")
    inside = {path: leaf for path, leaf in flat.items() if path in chosen}
    outside = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten(inside), unflatten(outside)


def merge(left: Tree, right: Tree) -> dict[str, Any]:
    """Returns one nested dict of two halves; the inverse of `split`.

    Raises:
      ValueError: a leaf is in both halves.
    """
    flat, other = flatten(left), flatten(right)
    both = flat.keys() & other.keys()
    if both:
        raise ValueError(f"leaves in both halves: {sorted(both)[:5]}")
    return unflatten({**flat, **other})


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> dict[str, Any]:
    """Applies ``fn(leaf path, leaf, *leaves of rest)`` to every leaf and keeps the nesting."""
    others = [flatten(r) for r in rest]
    return unflatten({p: fn(p, leaf, *(o[p] for o in others)) for p, leaf in flatten(tree).items()})


def size(tree: Any) -> int:
    """Returns the number of scalars in a pytree of arrays or shape structs."""
    return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(tree)))


def nbytes(tree: Any) -> int:
    """Returns the number of bytes of a pytree of arrays or shape structs."""
    return int(
        sum(
            np.prod(leaf.shape, dtype=np.int64) * np.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def on_host(array: Any) -> np.ndarray:
    """Returns the values of an array as a NumPy array.

    If the array is sharded over several processes, all processes must call this function.
    """
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        from jax.experimental.multihost_utils import process_allgather

        return process_allgather(array, tiled=True)
    return np.asarray(array)


def key_path(path: Sequence[Any]) -> str:
    """Returns the keys of a pytree path, joined by '/', for all kinds of pytree nodes."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def first_nonfinite(pytree: Any) -> str | None:
    """Returns the path of the first leaf that holds NaN or infinity; None if there is no such leaf.

    If an array is sharded over several processes, all processes must call this function.

    Args:
      pytree: any pytree of arrays; leaves that are not floating-point numbers count as finite.
    """
    leaves = jax.tree_util.tree_leaves_with_path(pytree)
    floats = [(p, x) for p, x in leaves if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    # All reductions are started before the first result is fetched.
    finite = jax.device_get([_all_finite(leaf) for _, leaf in floats])
    bad = (path for (path, _), good in zip(floats, finite, strict=True) if not good)
    found = next(bad, None)
    return None if found is None else key_path(found)


def _all_finite(leaf: Any) -> Any:
    on_device = isinstance(leaf, jax.Array) and not (
        leaf.is_fully_replicated and next(iter(leaf.devices())).platform == "cpu"
    )
    # NumPy reads the memory of a CPU's array, which needs no compiled program.
    return _reduce_finite(leaf) if on_device else np.isfinite(np.asarray(leaf)).all()


@jax.jit
def _reduce_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def checksum(array: Any) -> str:
    """Returns the SHA-256 (hex) of the dtype, the shape and the C-ordered bytes of an array."""
    header, content = _bytes_of(array)
    digest = hashlib.sha256(header)
    digest.update(content)
    return digest.hexdigest()


def crc32(array: Any) -> str:
    """Returns the CRC-32 (hex) of the dtype, the shape and the C-ordered bytes of an array.

    It takes less than a third of the time of `checksum`. It finds damage, but it does not identify
    an array: another array with the same CRC-32 is easily made.
    """
    header, content = _bytes_of(array)
    return f"{zlib.crc32(content, zlib.crc32(header)):08x}"


def _bytes_of(array: Any) -> tuple[bytes, memoryview]:
    """(dtype and shape, values) of an array."""
    array = on_host(array)
    # A view of the bytes, because a copy takes longer than a checksum.
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return f"{array.dtype.name}{array.shape}".encode(), values


def checksums(
    arrays: Mapping[str, Any], checksum: Callable[[Any], str] = checksum
) -> dict[str, str]:
    """Returns the checksum of each array by the array's name.

    If an array is sharded over several processes, all processes must call this function.

    Args:
      arrays: arrays by name.
      checksum: `checksum` or `crc32`.
    """
    if not all(getattr(x, "is_fully_addressable", True) for x in arrays.values()):
        # Every array is gathered from all processes, which need one order.
        return {name: checksum(array) for name, array in arrays.items()}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(arrays, pool.map(checksum, arrays.values()), strict=True))


def fingerprint(tree: Tree) -> str:
    """Returns the SHA-256 (hex) of the sorted leaf paths with the checksums of the leaves.

    Two trees have the same fingerprint if and only if the trees are bit-identical.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(leaf_checksums(tree).items()):
        digest.update(f"{path}={leaf};".encode())
    return digest.hexdigest()


def leaf_checksums(tree: Tree) -> dict[str, str]:
    """Returns ``{leaf path: checksum}`` of every leaf."""
    return checksums(flatten(tree))

"""Chooses name maps: each model family has a module here, and only the chosen one is imported.

The module of a family defines ``MAPS``, a tuple of `NameMap`. The modules are named as those of
`finetune_jax.models.registry.FAMILY_MODULES`, which is the one list of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence

from finetune_jax.doors import is_door, open_door
from finetune_jax.errors import UserError, nearest
from finetune_jax.models import MODULE_OF_FAMILY
from finetune_jax.models.registry import FAMILY_MODULES
from finetune_jax.pretrained.names import NameMap, native


def maps_of(family: str) -> tuple[NameMap, ...]:
    """All name maps of a family.

    A family that another package provides has one name map, that of our own files.
    """
    if family not in MODULE_OF_FAMILY:
        return (native(family),)
    return tuple(m for m in _maps_in(MODULE_OF_FAMILY[family]) if m.family == family)


def all_maps() -> tuple[NameMap, ...]:
    """The name maps of all families of this package; imports all of their modules."""
    return tuple(name_map for module in FAMILY_MODULES for name_map in _maps_in(module))


def _maps_in(module: str) -> tuple[NameMap, ...]:
    return importlib.import_module(f"{__name__}.{module}").MAPS


def map_of(family: str, origin: str, *, key: str = "origin") -> NameMap:
    """The name map of one origin.

    Args:
      family: the model family, as in `Entry.family`.
      origin: an origin of the family, such as ``timm``, or the door of a `NameMap` in another
        package, ``package.module:NAME``; a name map behind a door serves any family.
      key: config key or argument that gives the origin, for the error message.

    Raises:
      UserError: the family has no such origin, or the door cannot be opened.
    """
    if is_door(origin):
        found: NameMap = open_door(origin, key, NameMap)
        return found
    maps = {m.origin: m for m in maps_of(family)}
    if origin not in maps:
        raise UserError(
            f"{key}: the family {family!r} has no origin {origin!r}.{nearest(origin, maps)}"
        )
    return maps[origin]


def closest_map(
    name_maps: Sequence[NameMap], names: Iterable[str], leaves: Iterable[str] = ()
) -> tuple[NameMap, tuple[str, ...]]:
    """Returns the name map that knows most of the names, and the names that it does not know.

    Among name maps that know equally many names, the result is the first that leaves fewest of the
    model's leaves without a tensor.

    Args:
      name_maps: candidates, at least one.
      names: tensor names of a file.
      leaves: ``params/…`` and ``batch_stats/…`` of the model.
    """
    names, leaves = tuple(names), frozenset(leaves)
    fewest: tuple[int, int] | None = None
    best: tuple[NameMap, tuple[str, ...]] | None = None
    for name_map in name_maps:
        unknown: list[str] = []
        reached: set[str] = set()
        for name in names:
            targets = name_map.targets(name)
            reached.update(t.leaf for t in targets)
            if not targets and name_map.ignored(name) is None:
                unknown.append(name)
                if fewest is not None and len(unknown) > fewest[0]:
                    break  # an earlier name map knows more of the names
        misses = (len(unknown), len(leaves - reached))
        if fewest is None or misses < fewest:
            fewest, best = misses, (name_map, tuple(unknown))
    if best is None:
        raise ValueError("expected at least one name map")
    return best

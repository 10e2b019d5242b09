"""Prefixes of tensor names, found as the text before the names that name maps know."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.roles import RAW, role_of
from finetune_jax.pretrained.maps import closest_map, maps_of
from finetune_jax.pretrained.names import NameMap

_SAMPLE = 60  # names in which prefixes are looked for
_MOST_PARTS = 12  # separators in a name behind which a known name is looked for
_MOST_PREFIXES = 12  # prefixes that are counted over all names

Belongs = Callable[[NameMap, str], bool]
"""Whether a name map knows a name as that of a leaf of the model."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A prefix, the names behind it that a name map knows, and their role.

    `name_maps` are those that know most of the names behind the prefix.
    """

    prefix: str
    names: frozenset[str]
    name_maps: tuple[NameMap, ...]
    role: str
    rank: int

    def root(self) -> str:
        """The prefix up to the component that gives the role; the prefix if none does."""
        for end in [*starts(self.prefix), len(self.prefix)]:
            if role_of(re.split(r"[./]", self.prefix[:end]))[0] == self.role != RAW:
                return self.prefix[:end]
        return self.prefix


def role_behind(prefix: str, default: str) -> tuple[str, int]:
    """(role, rank) of the tensors behind a prefix; `default` if the prefix gives no role."""
    role, rank = role_of(re.split(r"[./]", prefix))
    return (role, rank) if role != RAW else (default or RAW, 0)


def starts(name: str) -> list[int]:
    """Where a name may begin: at 0 and behind the first separators."""
    return [0, *(m.end() for m in re.finditer(r"[./]", name))][: _MOST_PARTS + 1]


def candidates(
    names: Sequence[str], name_maps: Sequence[NameMap], belongs: Belongs, role: str = ""
) -> list[Candidate]:
    """Prefixes behind which names are known, those with the most names first.

    `role` is the role of tensors whose prefix gives none.
    """
    step = max(1, len(names) // _SAMPLE)
    votes: collections.Counter[tuple[str, int]] = collections.Counter()
    for name in names[::step]:
        for start in starts(name):
            for number, name_map in enumerate(name_maps):
                if belongs(name_map, name[start:]):
                    votes[name[:start], number] += 1
    best: dict[str, list[int]] = {}
    for (prefix, number), count in votes.most_common():
        if len(best) < _MOST_PREFIXES:
            best.setdefault(prefix, [])
        if prefix in best and (not best[prefix] or count > 0.9 * votes[prefix, best[prefix][0]]):
            best[prefix].append(number)
    found = []
    for prefix, numbers in best.items():
        known = frozenset(
            n for n in names
            if n.startswith(prefix) and belongs(name_maps[numbers[0]], n.removeprefix(prefix))
        )  # fmt: skip
        found.append(
            Candidate(
                prefix, known, tuple(name_maps[i] for i in numbers), *role_behind(prefix, role)
            )
        )
    return sorted(found, key=lambda c: (-len(c.names), len(c.prefix)))


def best_prefix(names: Sequence[str], name_maps: Sequence[NameMap], belongs: Belongs) -> str:
    """The prefix behind which most names are known."""
    found = candidates(names, name_maps, belongs)
    return found[0].prefix if found else ""


def find_map(family: str, names: Iterable[str]) -> NameMap:
    """The name map of the family that knows every one of the names, behind a common prefix.

    Raises UserError with the names that the closest name map does not know.
    """
    names, name_maps = tuple(names), maps_of(family)
    prefix = best_prefix(names, name_maps, lambda name_map, name: bool(name_map.targets(name)))
    best, unmatched = closest_map(name_maps, [name.removeprefix(prefix) for name in names])
    if unmatched:
        origins = ", ".join(m.origin for m in name_maps)
        shown = ", ".join(map(repr, unmatched[:20])) + (", …" if len(unmatched) > 20 else "")
        raise UserError(
            f"{len(unmatched)} tensor names fit no origin of the family {family!r} "
            f"(known: {origins}; closest: {best.origin}): {shown}"
        )
    return best

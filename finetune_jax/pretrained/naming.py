"""The names of a file's tensors: the prefix that they have, and the set of weights to take.

Wrappers of training put prefixes before every name (``module.``, ``_orig_mod.``, ``backbone.``),
and some files hold several networks (a teacher and a student). A prefix is the text before the
names that the name maps know.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.formats.roles import RAW
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.names import NameMap
from finetune_jax.pretrained.prefixes import (
    Belongs,
    Candidate,
    candidates,
    role_behind,
    starts,
)

# Prefixes whose names may stand beside names without the prefix.
_TRIVIAL = re.compile(r"((module|_orig_mod)\.)*")


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names of a file, translated to names that name maps know.

    Attributes:
      prefix: text before the names of the model's tensors.
      given: whether the user gave the prefix.
      weights: role of the tensors; empty in a file without roles.
      others: ``{prefix: role}`` of the other sets of weights in the file.
      said: what the user should know about the choice.
    """

    prefix: str = ""
    given: bool = False
    weights: str = ""
    others: dict[str, str] = dataclasses.field(default_factory=dict)
    said: tuple[str, ...] = ()

    def short(self, name: str) -> str:
        """The name without the prefix, or without as much of the prefix as the name has."""
        if name.startswith(self.prefix):
            return name[len(self.prefix) :]
        ends = [end for end in starts(self.prefix) if name.startswith(self.prefix[:end])]
        return name[max(ends) :]

    def outside(self, name: str) -> str:
        """Reason why a tensor belongs to another set of weights; '' if it does not."""
        if name.startswith(self.prefix) and self.prefix:
            return ""
        for root, role in self.others.items():
            if name.startswith(root):
                return f"part of the {role} weights, and the {self.weights} weights are loaded"
        return ""


def find_naming(
    weights: Weights,
    names: Sequence[str],
    name_maps: Sequence[NameMap],
    belongs: Belongs,
    asked: str = "",
    given: str = "",
) -> Naming:
    """Finds the prefix of a file's names, and chooses between sets of weights.

    Args:
      weights: the open file.
      names: its names, without those to ignore.
      name_maps: name maps of the model.
      belongs: see `Belongs`.
      asked: role of the weights that the user asks for; empty for the default of the file.
      given: prefix of the user; empty to find it.

    Raises:
      UserError: no name has the prefix of the user; the file does not have the weights of the user;
        several sets of tensors fit equally; or some known names have the prefix and some do not.
    """
    if given:
        return _given(weights, names, name_maps, belongs, asked, given)
    plain = not asked or weights.chosen == asked or (asked == RAW and not weights.chosen)
    if plain and any(
        all(m.targets(n) or m.ignored(n) is not None for n in names)
        and any(belongs(m, n) for n in names)
        for m in name_maps
    ):
        return Naming(weights=weights.chosen, said=tuple(_containers(weights, asked)))
    found = candidates(names, name_maps, belongs, weights.chosen)
    if not found:
        return Naming(weights=weights.chosen)
    best = found[0]
    rivals = [c for c in found if not c.names & best.names and 2 * len(c.names) >= len(best.names)]
    chosen = _choose(weights, [best, *rivals], asked)
    others = {c.root(): c.role for c in (best, *rivals) if c is not chosen}
    role = chosen.role if rivals or chosen.role != RAW else weights.chosen
    naming = Naming(chosen.prefix, weights=role, others=others)
    inside = [n for n in names if not naming.outside(n)]
    known = [
        n
        for n in inside
        if not n.startswith(naming.prefix)
        and any(belongs(m, naming.short(n)) for m in chosen.name_maps)
    ]
    if known and not _TRIVIAL.fullmatch(naming.prefix):
        other = "this one does" if len(known) == 1 else f"{len(known)} do"
        raise UserError(
            f"{weights.path}: {len(chosen.names)} known names begin with {naming.prefix!r}, and "
            f"{other} not: {listed(known)}. --config.pretrained.prefix={naming.prefix!r} takes "
            "the prefix off and keeps the other names as they are; "
            "--config.pretrained.ignore='REGEX' drops tensors"
        )
    said = [*_containers(weights, asked)]
    if others and not asked:
        also = ", ".join(f"{role} (names {root!r}…)" for root, role in others.items())
        said.append(
            f"takes the {naming.weights} weights (names {naming.prefix!r}…); the file also has "
            f"{also}: choose with pretrained.weights"
        )
    elif naming.prefix:
        with_prefix = sum(n.startswith(naming.prefix) for n in names)
        count = f"all {len(names)}" if with_prefix == len(names) else f"{with_prefix}"
        said.append(f"the prefix {naming.prefix!r} of {count} names is taken off")
    return dataclasses.replace(naming, said=tuple(said))


def _given(
    weights: Weights,
    names: Sequence[str],
    name_maps: Sequence[NameMap],
    belongs: Belongs,
    asked: str,
    prefix: str,
) -> Naming:
    if prefix[-1] not in "./":  # `backbone` is meant as `backbone.`
        ends = (end for end in "./" if any(name.startswith(prefix + end) for name in names))
        prefix += next(ends, "")
    if not any(name.startswith(prefix) for name in names):
        found = [
            c.prefix for c in candidates(names, name_maps, belongs, weights.chosen) if c.prefix
        ]
        hint = nearest(prefix, found) if found else f" The names are {listed(names)}."
        raise UserError(f"{weights.path}: pretrained.prefix: no name begins with {prefix!r}.{hint}")
    role, _ = role_behind(prefix, weights.chosen)
    if asked and role != asked:
        raise _missing(weights, asked, {role: f"names {prefix!r}…"})
    return Naming(prefix, given=True, weights=role if role != RAW else weights.chosen)


def _choose(weights: Weights, found: Sequence[Candidate], asked: str) -> Candidate:
    """The set of tensors that the user asked for, or the first by rank."""
    roles = {c.role: f"names {c.prefix!r}…" if c.prefix else "" for c in found}
    if asked and asked not in roles:
        raise _missing(weights, asked, roles)
    fitting = [c for c in found if c.role == asked] if asked else found
    least = min(c.rank for c in fitting)
    fitting = [c for c in fitting if c.rank == least]
    if len(fitting) > 1:
        sets = ", ".join(f"{c.prefix!r} ({len(c.names)})" for c in fitting)
        raise UserError(
            f"{weights.path}: {len(fitting)} sets of tensors fit the model, behind {sets}; choose "
            f"one, such as --config.pretrained.prefix={fitting[-1].prefix!r}, or drop the others "
            " with --config.pretrained.ignore='REGEX'"
        )
    return fitting[0]


def _missing(weights: Weights, asked: str, roles: dict[str, str]) -> UserError:
    held = {**{role: f"under {place!r}" for role, place in weights.sets.items()}, **roles}
    has = ", ".join(f"{role} ({place})" if place else role for role, place in held.items())
    return UserError(
        f"{weights.path}: pretrained.weights={asked!r}: the file has no such weights; it has {has}"
    )


def _containers(weights: Weights, asked: str) -> Iterator[str]:
    """Says which state dict of a PyTorch file was chosen, if the user made no choice."""
    others = [f"{r} (under {p!r})" for r, p in weights.sets.items() if r != weights.chosen]
    if others and not asked:
        yield (
            f"takes the {weights.chosen} weights (under {weights.sets[weights.chosen]!r}); the "
            f"file also has {', '.join(others)}: choose with pretrained.weights"
        )


def listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")

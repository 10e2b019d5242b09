"""Which tensors of a file are the model's: one of several sets, behind a prefix of their names.

Wrappers of training put prefixes before every name (``module.``, ``_orig_mod.``, ``backbone.``),
and some files hold several networks (a teacher and a student). The name maps tell what is a prefix:
it is the text before the names that they know.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.formats.limits import is_optimizer
from finetune_jax.pretrained.formats.roles import RAW, ROLES, role_of
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.maps import closest_map, maps_of
from finetune_jax.pretrained.names import NameMap

# Prefixes whose names may stand beside names without the prefix.
_TRIVIAL = re.compile(r"((module|_orig_mod)\.)*")
_SAMPLE = 60  # names in which prefixes are looked for
_MOST_PARTS = 12  # separators in a name behind which a known name is looked for
_MOST_PREFIXES = 12  # prefixes that are counted over all names

IGNORED = "matches pretrained.ignore"
"""Reason in the manifest of a tensor that the user drops."""

Belongs = Callable[[NameMap, str], bool]
"""Whether a name map knows a name as that of a leaf of the model."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """A choice of tensors by the user; the keys of the config are ``pretrained.…``.

    Attributes:
      weights: ``pretrained.weights``, one of `roles.ROLES`; empty for the default of the file.
      prefix: ``pretrained.prefix``, the text before the names of the model's tensors; empty to take
        off what is before the names of all known tensors.
      ignore: ``pretrained.ignore``, a regular expression for whole names of tensors to drop, as in
        the file or without the prefix.
      names: names in the file of tensors to drop, beside those that match `ignore`.

    Raises:
      UserError: an unknown role, or no regular expression.
    """

    weights: str = ""
    prefix: str = ""
    ignore: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and self.weights not in ROLES:
            raise UserError(
                f"pretrained.weights: unknown weights {self.weights!r}."
                f"{nearest(self.weights, ROLES)}"
            )
        try:
            re.compile(self.ignore)
        except re.error as error:
            raise UserError(
                f"pretrained.ignore: {self.ignore!r} is no regular expression: {error}"
            ) from None


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
        ends = [end for end in _starts(self.prefix) if name.startswith(self.prefix[:end])]
        return name[max(ends) :]

    def outside(self, name: str) -> str:
        """Reason why a tensor belongs to another set of weights; '' if it does not."""
        if name.startswith(self.prefix) and self.prefix:
            return ""
        for root, role in self.others.items():
            if name.startswith(root):
                return f"part of the {role} weights, and the {self.weights} weights are loaded"
        return ""


@dataclasses.dataclass(frozen=True)
class _Candidate:
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
        starts = [*_starts(self.prefix), len(self.prefix)]
        for end in starts:
            if role_of(re.split(r"[./]", self.prefix[:end]))[0] == self.role != RAW:
                return self.prefix[:end]
        return self.prefix


def model_names(weights: Weights) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of the tensors of models, names of the tensors of an optimizer)."""
    names = weights.names()
    slots = tuple(name for name in names if is_optimizer(name))
    return tuple(n for n in names if not is_optimizer(n)) if slots else names, slots


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The tensors of a file that are the model's.

    Attributes:
      naming: the prefix of their names.
      ignored: names of the tensors that the user drops.
      left_out: ``{name: reason}`` of all tensors that are not the model's, `ignored` included; a
        load adds names.
      slots: names of the tensors of an optimizer.
    """

    naming: Naming
    ignored: frozenset[str]
    left_out: dict[str, str]
    slots: tuple[str, ...]


def choose_tensors(
    weights: Weights, name_maps: Sequence[NameMap], belongs: Belongs, selection: Selection
) -> Chosen:
    """Finds the tensors of the model among those of a file; arguments and errors as `find_naming`.

    Raises:
      UserError: also if no name matches ``pretrained.ignore``.
    """
    names, slots = model_names(weights)
    pattern = re.compile(selection.ignore)

    def is_ignored(*spellings: str) -> bool:
        matches = bool(selection.ignore) and any(map(pattern.fullmatch, spellings))
        return matches or spellings[0] in selection.names

    kept = [name for name in names if not is_ignored(name)]
    naming = find_naming(weights, kept, name_maps, belongs, selection)
    ignored = {name: None for name in names if is_ignored(name, naming.short(name))}
    if selection.ignore and not ignored:
        raise UserError(
            f"{weights.path}: pretrained.ignore={selection.ignore!r} matches no name; it is "
            f"compared with whole names, such as {_listed(names)}"
        )
    left_out = {name: reason for name in names if (reason := naming.outside(name))}
    left_out |= {name: IGNORED for name in ignored}
    return Chosen(naming, frozenset(ignored), left_out, slots)


def find_naming(
    weights: Weights,
    names: Sequence[str],
    name_maps: Sequence[NameMap],
    belongs: Belongs,
    selection: Selection,
) -> Naming:
    """Finds the prefix of a file's names, and chooses between sets of weights.

    Args:
      weights: the open file.
      names: its names, without those to ignore.
      name_maps: name maps of the model.
      belongs: see `Belongs`.
      selection: choice of the user.

    Raises:
      UserError: no name has the prefix of the user; the file does not have the weights of the user;
        several sets of tensors fit equally; or some known names have the prefix and some do not.
    """
    asked = selection.weights
    if selection.prefix:
        return _given(weights, names, name_maps, belongs, selection)
    plain = not asked or weights.chosen == asked or (asked == RAW and not weights.chosen)
    if plain and any(
        all(m.targets(n) or m.ignored(n) is not None for n in names)
        and any(belongs(m, n) for n in names)
        for m in name_maps
    ):
        return Naming(weights=weights.chosen, said=tuple(_containers(weights, asked)))
    found = _candidates(names, name_maps, belongs, weights.chosen)
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
            f"{other} not: {_listed(known)}. pretrained.prefix={naming.prefix!r} takes the prefix "
            "off and keeps the other names as they are; pretrained.ignore='REGEX' drops tensors"
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
    selection: Selection,
) -> Naming:
    prefix = selection.prefix
    if prefix[-1] not in "./":  # `backbone` is meant as `backbone.`
        ends = (end for end in "./" if any(name.startswith(prefix + end) for name in names))
        prefix += next(ends, "")
    if not any(name.startswith(prefix) for name in names):
        found = [
            c.prefix for c in _candidates(names, name_maps, belongs, weights.chosen) if c.prefix
        ]
        hint = nearest(prefix, found) if found else f" The names are {_listed(names)}."
        raise UserError(f"{weights.path}: pretrained.prefix: no name begins with {prefix!r}.{hint}")
    role, _ = _role(prefix, weights.chosen)
    if selection.weights and role != selection.weights:
        raise _missing(weights, selection.weights, {role: f"names {prefix!r}…"})
    return Naming(prefix, given=True, weights=role if role != RAW else weights.chosen)


def _choose(weights: Weights, found: Sequence[_Candidate], asked: str) -> _Candidate:
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
            f"one with pretrained.prefix, such as pretrained.prefix={fitting[-1].prefix!r}, or "
            "drop the others with pretrained.ignore='REGEX'"
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


def _role(prefix: str, default: str) -> tuple[str, int]:
    role, rank = role_of(re.split(r"[./]", prefix))
    return (role, rank) if role != RAW else (default or RAW, 0)


def _starts(name: str) -> list[int]:
    """Where a name may begin: at 0 and behind the first separators."""
    return [0, *(m.end() for m in re.finditer(r"[./]", name))][: _MOST_PARTS + 1]


def _candidates(
    names: Sequence[str], name_maps: Sequence[NameMap], belongs: Belongs, role: str = ""
) -> list[_Candidate]:
    """Prefixes behind which names are known, those with the most names first.

    `role` is the role of tensors whose prefix gives none.
    """
    step = max(1, len(names) // _SAMPLE)
    votes: collections.Counter[tuple[str, int]] = collections.Counter()
    for name in names[::step]:
        for start in _starts(name):
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
            _Candidate(prefix, known, tuple(name_maps[i] for i in numbers), *_role(prefix, role))
        )
    return sorted(found, key=lambda c: (-len(c.names), len(c.prefix)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")


def best_prefix(names: Sequence[str], name_maps: Sequence[NameMap], belongs: Belongs) -> str:
    """The prefix behind which most names are known."""
    found = _candidates(names, name_maps, belongs)
    return found[0].prefix if found else ""


def find_map(family: str, names: Iterable[str]) -> NameMap:
    """The name map of the family that knows every one of the names, behind a common prefix.

    Raises UserError with the names that the closest name map does not know.
    """
    names, name_maps = tuple(names), maps_of(family)
    prefix = best_prefix(names, name_maps, lambda name_map, name: bool(name_map.targets(name)))
    short = Naming(prefix).short
    best, unmatched = closest_map(name_maps, map(short, names))
    if unmatched:
        origins = ", ".join(m.origin for m in name_maps)
        shown = ", ".join(map(repr, unmatched[:20])) + (", …" if len(unmatched) > 20 else "")
        raise UserError(
            f"{len(unmatched)} tensor names fit no origin of the family {family!r} "
            f"(known: {origins}; closest: {best.origin}): {shown}"
        )
    return best


def close_name(name: str, valid: Iterable[str]) -> str:
    """The hint of `errors.nearest`, if a valid name is close; '' if none is."""
    hint = nearest(name, valid)
    return hint if hint.startswith(" Did you") else ""


def ignoring(names: Sequence[str], prefix: str) -> str:
    """Text that says how to drop tensors that no leaf of the model lacks."""
    roots = []
    for name in names:
        begin = len(prefix) if name.startswith(prefix) else 0
        ends = [end for end in _starts(name) if end > begin]
        roots.append(f"{re.escape(name[: ends[0]])}.*" if ends else re.escape(name))
    pattern = "|".join(dict.fromkeys(roots))
    some = f"these {len(names)} tensors" if len(names) > 1 else "this tensor"
    return (
        f"Every leaf of the model has its tensor without {some} of unknown name. If that is right, "
        f"drop what is not needed: pretrained.ignore={pattern!r:.500}"
    )

"""From what a person writes to a plan: named schemes, ordered rules, and all that can be wrong."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune_jax import tree
from finetune_jax.deltas import Delta
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, parse, print_sum
from finetune_jax.schemes.library import SCHEMES
from finetune_jax.schemes.outline import Claim, Outline
from finetune_jax.schemes.plan import FROZEN, Group, Leaf, Plan

BATCH_NORM = ("frozen", "frozen_all", "track", "reestimate")
DROPOUT = ("eval", "train")
DECAY_MASK = ".*kernel|.*/lora_[ab]"
_RATES = ("lr", "decay", "schedule", "warmup")

Scheme = str | Sequence[Any]
"""Text, ordered rules, or the parsed terms of a sum."""


@dataclasses.dataclass
class _Draft:
    """What the terms have decided so far."""

    text: str
    owner: dict[str, str]
    lr: dict[str, float]
    groups: dict[str, Group]
    deltas: list[Delta]
    measured: Any = None


def resolve(
    scheme: Scheme,
    stages: Sequence[str],
    params: tree.Tree,
    batch_stats: tree.Tree,
    *,
    batch_norm: str = "frozen",
    frozen_dropout: str = "eval",
    decay: str = DECAY_MASK,
    deltas: Sequence[Delta] = (),
) -> Plan:
    """Resolves a scheme against a model.

    Args:
      scheme: ``"last_k(2, lr=0.1) + norm"``, its parsed terms, or ordered rules
        ``[("head/.*", "head(lr=10)"), (".*", "frozen")]``, as a list or as its text. The first
        rule that fully matches a leaf path decides; of named terms, the leftmost. Terms that only
        set rates (``llrd(0.75)``) apply to whatever the others claim, to everything if they stand
        alone.
      stages: stage names in forward order.
      params: param pytree of the base, concrete or abstract.
      batch_stats: BatchNorm statistics, empty for models without.
      batch_norm: ``frozen``: a stage in which no scale or bias of a BatchNorm trains uses and keeps
        its statistics, others follow the batches (a delta beside them, such as SSF's, does not
        count); ``frozen_all``: every stage keeps them;
        ``track``: every stage follows; ``reestimate``: all are recomputed once on training images,
        then as ``frozen``.
      frozen_dropout: ``eval`` or ``train``: dropout in stages with nothing trainable.
      decay: regex of the leaf paths weight decay may touch, whatever their group.
      deltas: those that earlier phases added; frozen unless a term of the scheme is theirs.

    Returns:
      The plan.

    Raises:
      UserError: unknown scheme, wrong arguments, a rule that matches no leaf or is shadowed by
        earlier ones, or a leaf that no rule matches.
    """
    _choice("batch_norm", batch_norm, BATCH_NORM)
    _choice("frozen_dropout", frozen_dropout, DROPOUT)
    outline = Outline(tuple(stages), tree.flatten({stage: params[stage] for stage in stages}))
    if isinstance(scheme, str) and scheme.lstrip().startswith(("[", "(")):
        scheme = _literal_rules(scheme)
    if isinstance(scheme, str):
        scheme = parse(scheme)
    if scheme and all(isinstance(term, Call) for term in scheme):
        draft = _named(tuple(scheme), outline, deltas)
    else:
        draft = _rules(scheme, outline, deltas)
    if not draft.groups:
        raise UserError(f"scheme {draft.text!r} trains nothing: every leaf is frozen")
    may_decay = _regex(decay, "decay_mask")
    shapes = {path: (tuple(x.shape), np.dtype(x.dtype).name) for path, x in outline.leaves.items()}
    added: set[str] = set()
    for delta in draft.deltas:
        new = delta.leaves(outline.leaves)
        shapes |= {path: (leaf.shape, leaf.dtype) for path, leaf in new.items()}
        added |= new.keys()
    order = sorted(shapes, key=lambda p: outline.stages.index(p.split("/", 1)[0]))
    leaves = []
    for path in order:
        owner = draft.owner.get(path, FROZEN)
        trains = owner != FROZEN
        leaves.append(
            Leaf(
                path=path,
                shape=shapes[path][0],
                dtype=shapes[path][1],
                group=owner,
                lr=draft.lr[path] if trains else 0.0,
                decays=trains and bool(may_decay.fullmatch(path)),
                delta=path in added,
            )
        )
    for name, group in draft.groups.items():
        if group.decay and not any(leaf.decays for leaf in leaves if leaf.group == name):
            raise UserError(
                f"scheme: {name!r} sets a decay, but decay_mask={decay!r} matches no leaf of it"
            )
    alive = {leaf.stage for leaf in leaves if leaf.trains}
    statistics = tuple(tree.flatten(batch_stats))
    norms = {p.rsplit("/", 1)[0] for p in statistics}
    own = [x for x in leaves if x.trains and not x.delta]
    moving = {x.stage for x in own if x.path.rsplit("/", 1)[0] in norms}
    has_statistics = {p.split("/", 1)[0] for p in statistics}
    follows = {"frozen_all": set(), "track": set(stages)}.get(batch_norm, moving)
    return Plan(
        scheme=draft.text,
        stages=tuple(stages),
        leaves=tuple(leaves),
        groups=draft.groups,
        deltas=tuple(draft.deltas),
        measured=draft.measured,
        batch_norm=batch_norm,
        tracked=tuple(s for s in stages if s in follows and s in has_statistics),
        statistics=statistics,
        dropout=tuple(s for s in stages if s in alive or frozen_dropout == "train"),
    )


def claim_all(scheme: str, outline: Outline) -> Claim:
    """The leaves and deltas a sum of terms claims, each leaf once; no rates."""
    draft = _named(parse(scheme), outline, ())
    base = [p for p, owner in draft.owner.items() if owner != FROZEN and p in outline.leaves]
    return Claim(base, draft.deltas)


def _named(terms: tuple[Call, ...], outline: Outline, earlier: Sequence[Delta]) -> _Draft:
    claims: list[tuple[Call, dict[str, Any], Claim]] = []
    for term in terms:
        if term.name not in SCHEMES:
            raise UserError(f"scheme: unknown scheme {term.name!r}.{nearest(term.name, SCHEMES)}")
        rates = {k: v for k, v in term.kwargs if k in _RATES}
        own = {k: v for k, v in term.kwargs if k not in rates}
        claims.append((term, rates, _call(term, outline, own)))
    if all(claim.rates is not None for _, _, claim in claims):
        everything = Call("full")
        terms = (everything, *terms)
        claims.insert(0, (everything, {}, SCHEMES["full"](outline)))
    text = print_sum(terms)
    draft = _Draft(text, dict.fromkeys(outline.paths, FROZEN), {}, {}, list(earlier))
    for delta in earlier:
        draft.owner |= dict.fromkeys(delta.leaves(outline.leaves), FROZEN)
    factors = dict.fromkeys(outline.paths, 1.0)
    for term, rates, claim in claims:
        if claim.rates is None:
            _claim(draft, str(term), rates, claim, outline)
            continue
        if rates:
            raise UserError(f"scheme {text!r}: {term.name!r} sets rates and takes no {rates}")
        factors = {p: f * claim.rates[p] for p, f in factors.items()}
    for path in draft.lr:
        # A delta leaf learns at the rate of its module's stage.
        stage = path.split("/", 1)[0]
        draft.lr[path] *= factors.get(path) or factors[outline.of_stages((stage,))[0]]
    return draft


def _claim(draft: _Draft, name: str, rates: dict[str, Any], claim: Claim, outline: Outline) -> None:
    factor, group = _group(name, rates)
    wanted = dict.fromkeys(claim.leaves, 1.0)
    for delta in claim.deltas:
        leaves = delta.leaves(outline.leaves)
        if delta not in draft.deltas:
            taken = [p for p in leaves if p in draft.owner]
            if taken:
                raise UserError(
                    f"scheme {draft.text!r}: {name!r} adds {taken[0]!r}, which is there already"
                )
            draft.deltas.append(delta)
            draft.owner.update(dict.fromkeys(leaves, FROZEN))
        wanted |= {path: leaf.lr for path, leaf in leaves.items() if leaf.trains}
    free = {path: lr for path, lr in wanted.items() if draft.owner[path] == FROZEN}
    if not free:
        raise UserError(
            f"scheme {draft.text!r}: the term {name!r} is shadowed: every leaf it names already "
            f"belongs to {draft.owner[next(iter(wanted))]!r}; drop it or put it first"
        )
    if claim.measured:
        if draft.measured:
            raise UserError(f"scheme {draft.text!r}: only one term can measure its rates")
        draft.measured = claim.measured
    draft.groups[name] = group
    draft.owner.update(dict.fromkeys(free, name))
    draft.lr.update({path: factor * lr for path, lr in free.items()})


def _call(term: Call, outline: Outline, own: dict[str, Any]) -> Claim:
    function = SCHEMES[term.name]
    try:
        inspect.signature(function).bind(outline, *term.args, **own)
    except TypeError as error:
        names = list(inspect.signature(function).parameters)[1:]
        raise UserError(
            f"scheme {term}: {error}; {term.name} takes ({', '.join([*names, *_RATES])})"
        ) from None
    try:
        return function(outline, *term.args, **own)
    except UserError as error:
        raise UserError(f"scheme {term}: {error}") from None


def _literal_rules(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"scheme: cannot read the rules {text!r}: {error}") from None


def _rules(rules: Any, outline: Outline, earlier: Sequence[Delta]) -> _Draft:
    pairs: list[tuple[str, str]] = []
    if not isinstance(rules, list | tuple) or not rules:
        raise UserError(f"scheme: expected text or a list of (regex, group), found {rules!r}")
    for rule in rules:
        if not (
            isinstance(rule, list | tuple)
            and len(rule) == 2
            and all(isinstance(part, str) for part in rule)
        ):
            raise UserError(f"scheme: every rule is (regex, group), two strings; found {rule!r}")
        pairs.append((rule[0], rule[1]))
    draft = _Draft(repr(pairs), {}, {}, {}, list(earlier))
    factors: dict[str, float] = {}
    for pattern, written in pairs:
        call = parse(written)
        if len(call) != 1 or call[0].args:
            raise UserError(
                f"scheme: a group is 'name' or 'name(lr=…, decay=…)'; found {written!r}"
            )
        name, rates = call[0].name, dict(call[0].kwargs)
        matched = [p for p in outline.paths if _regex(pattern, "scheme").fullmatch(p)]
        if not matched:
            raise UserError(
                f"scheme: the rule {pattern!r} matches no leaf.{nearest(pattern, outline.paths)}"
            )
        free = [p for p in matched if p not in draft.owner]
        if not free:
            raise UserError(
                f"scheme: the rule {pattern!r} is shadowed: earlier rules already took all "
                f"{len(matched)} leaves it matches, such as {matched[0]!r}"
            )
        if name == FROZEN:
            if rates:
                raise UserError(f"scheme: the group 'frozen' takes no rates; found {written!r}")
        else:
            factor, group = _group(name, rates)
            if draft.groups.setdefault(name, group) != group or (
                factors.setdefault(name, factor) != factor
            ):
                raise UserError(f"scheme: the group {name!r} is given two sets of rates")
            draft.lr.update(dict.fromkeys(free, factor))
        draft.owner.update(dict.fromkeys(free, name))
    unmatched = [p for p in outline.paths if p not in draft.owner]
    if unmatched:
        raise UserError(
            f"scheme: no rule matches {len(unmatched)} leaves, such as {unmatched[0]!r}; end the "
            f"list with ('.*', 'frozen') to freeze the rest"
        )
    return draft


def _group(name: str, rates: Mapping[str, Any]) -> tuple[float, Group]:
    for key, value in rates.items():
        if key not in _RATES:
            raise UserError(f"group {name!r}: unknown rate {key!r}.{nearest(key, _RATES)}")
        if key == "schedule":
            if not isinstance(value, str):
                raise UserError(f"group {name!r}: schedule must be text, found {value!r}")
            continue
        good = isinstance(value, int if key == "warmup" else int | float)
        good = good and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < 0 or (key == "lr" and value == 0):
            raise UserError(
                f"group {name!r}: {key} must be a number {'> 0' if key == 'lr' else '>= 0'}, "
                f"found {value!r}; to freeze leaves use the group 'frozen'"
            )
    decay = rates.get("decay")
    group = Group(
        None if decay is None else float(decay), rates.get("schedule"), rates.get("warmup")
    )
    return float(rates.get("lr", 1.0)), group


def _choice(key: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise UserError(f"{key}: unknown policy {value!r}.{nearest(value, valid)}")


def _regex(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from None

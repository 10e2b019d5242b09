"""From what a person writes to a plan: named schemes, ordered rules, and all that can be wrong."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from typing import Any

from finetune_jax import tree
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, parse
from finetune_jax.schemes.library import SCHEMES, Outline
from finetune_jax.schemes.plan import FROZEN, Group, Leaf, Plan

BATCH_NORM = ("frozen", "frozen_all", "track", "reestimate")
DROPOUT = ("eval", "train")

Scheme = str | Sequence[tuple[str, str]]


def resolve(
    scheme: Scheme,
    stages: Sequence[str],
    params: tree.Tree,
    batch_stats: tree.Tree,
    *,
    batch_norm: str = "frozen",
    frozen_dropout: str = "eval",
    decay: str = ".*kernel",
) -> Plan:
    """Resolves a scheme against a model.

    Args:
      scheme: ``"last_k(2, lr=0.1) + norm_only"``, or ordered rules
        ``[("head/.*", "head(lr=10)"), (".*", "frozen")]``, as a list or as its text. The first
        rule that fully matches a leaf path decides; of named terms, the leftmost.
      stages: stage names in forward order.
      params: param pytree, concrete or abstract.
      batch_stats: BatchNorm statistics, empty for models without.
      batch_norm: ``frozen``: a stage with nothing trainable uses and keeps its statistics, others
        follow the batches; ``frozen_all``: every stage keeps them; ``track``: every stage follows;
        ``reestimate``: all are recomputed once on training images, then as ``frozen``.
      frozen_dropout: ``eval`` or ``train``: dropout in stages with nothing trainable.
      decay: regex of the leaf paths weight decay may touch, whatever their group.

    Returns:
      The plan.

    Raises:
      UserError: unknown scheme, wrong arguments, a rule that matches no leaf or is shadowed by
        earlier ones, or a leaf that no rule matches.
    """
    _choice("batch_norm", batch_norm, BATCH_NORM)
    _choice("frozen_dropout", frozen_dropout, DROPOUT)
    flat = {
        path: leaf
        for stage in stages
        for path, leaf in tree.flatten({stage: params[stage]}).items()
    }
    outline = Outline(tuple(stages), tuple(flat))
    if isinstance(scheme, str) and scheme.lstrip().startswith(("[", "(")):
        scheme = _literal_rules(scheme)
    if isinstance(scheme, str):
        text, owner, groups = _named(scheme, outline)
    else:
        text, owner, groups = _rules(scheme, outline)
    if not groups:
        raise UserError(f"scheme {text!r} trains nothing: every leaf is frozen")
    may_decay = _regex(decay, "decay_mask")
    leaves = tuple(
        Leaf(
            path=path,
            shape=tuple(leaf.shape),
            dtype=str(leaf.dtype),
            group=owner[path],
            decays=owner[path] != FROZEN and bool(may_decay.fullmatch(path)),
        )
        for path, leaf in flat.items()
    )
    alive = {leaf.stage for leaf in leaves if leaf.trains}
    statistics = tuple(tree.flatten(batch_stats))
    has_statistics = {p.split("/", 1)[0] for p in statistics}
    follows = {"frozen_all": set(), "track": set(stages)}.get(batch_norm, alive)
    return Plan(
        scheme=text,
        stages=tuple(stages),
        leaves=leaves,
        groups=groups,
        batch_norm=batch_norm,
        tracked=tuple(s for s in stages if s in follows and s in has_statistics),
        statistics=statistics,
        dropout=tuple(s for s in stages if s in alive or frozen_dropout == "train"),
    )


def _named(text: str, outline: Outline) -> tuple[str, dict[str, str], dict[str, Group]]:
    owner = dict.fromkeys(outline.paths, FROZEN)
    groups: dict[str, Group] = {}
    for term in parse(text):
        if term.name not in SCHEMES:
            raise UserError(f"scheme: unknown scheme {term.name!r}.{nearest(term.name, SCHEMES)}")
        rates = {k: v for k, v in term.kwargs if k in ("lr", "decay")}
        own = {k: v for k, v in term.kwargs if k not in rates}
        claimed = _call(term, outline, own)
        free = [path for path in claimed if owner[path] == FROZEN]
        name = str(term)
        if not free:
            raise UserError(
                f"scheme {text!r}: the term {name!r} is shadowed: every leaf it names already "
                f"belongs to {owner[claimed[0]]!r}; drop it or put it first"
            )
        groups[name] = _group(name, rates)
        owner.update(dict.fromkeys(free, name))
    return " + ".join(groups), owner, groups


def _call(term: Call, outline: Outline, own: dict[str, Any]) -> list[str]:
    function = SCHEMES[term.name]
    try:
        inspect.signature(function).bind(outline, *term.args, **own)
    except TypeError as error:
        names = list(inspect.signature(function).parameters)[1:]
        raise UserError(
            f"scheme {term}: {error}; {term.name} takes ({', '.join([*names, 'lr', 'decay'])})"
        ) from None
    return function(outline, *term.args, **own)


def _literal_rules(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"scheme: cannot read the rules {text!r}: {error}") from None


def _rules(rules: Any, outline: Outline) -> tuple[str, dict[str, str], dict[str, Group]]:
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
    owner: dict[str, str] = {}
    groups: dict[str, Group] = {}
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
        free = [p for p in matched if p not in owner]
        if not free:
            raise UserError(
                f"scheme: the rule {pattern!r} is shadowed: earlier rules already took all "
                f"{len(matched)} leaves it matches, such as {matched[0]!r}"
            )
        if name == FROZEN:
            if rates:
                raise UserError(f"scheme: the group 'frozen' takes no rates; found {written!r}")
        else:
            group = _group(name, rates)
            if groups.setdefault(name, group) != group:
                raise UserError(f"scheme: the group {name!r} is given two sets of rates")
        owner.update(dict.fromkeys(free, name))
    unmatched = [p for p in outline.paths if p not in owner]
    if unmatched:
        raise UserError(
            f"scheme: no rule matches {len(unmatched)} leaves, such as {unmatched[0]!r}; end the "
            f"list with ('.*', 'frozen') to freeze the rest"
        )
    return repr(pairs), owner, groups


def _group(name: str, rates: dict[str, Any]) -> Group:
    for key, value in rates.items():
        if key not in ("lr", "decay"):
            raise UserError(f"group {name!r}: unknown rate {key!r}.{nearest(key, ('lr', 'decay'))}")
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or value < 0 or (key == "lr" and value == 0):
            raise UserError(
                f"group {name!r}: {key} must be a number {'> 0' if key == 'lr' else '>= 0'}, "
                f"found {value!r}; to freeze leaves use the group 'frozen'"
            )
    decay = rates.get("decay")
    return Group(float(rates.get("lr", 1.0)), None if decay is None else float(decay))


def _choice(key: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise UserError(f"{key}: unknown policy {value!r}.{nearest(value, valid)}")


def _regex(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from None

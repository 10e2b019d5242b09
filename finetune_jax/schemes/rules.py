"""A scheme as ordered rules: the first rule whose regex matches a whole leaf path decides."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from finetune_jax.deltas import Delta
from finetune_jax.doors import is_door
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import parse
from finetune_jax.schemes.model_spec import ModelSpec
from finetune_jax.schemes.plan import FROZEN
from finetune_jax.schemes.plan_builder import PlanBuilder, parse_group


def is_rules_text(scheme: object) -> bool:
    """Whether a scheme is the text of a list of rules, and not of a sum in brackets."""
    if not isinstance(scheme, str) or not scheme.lstrip().startswith(("[", "(")):
        return False
    try:
        return isinstance(ast.parse(scheme.strip(), mode="eval").body, ast.List | ast.Tuple)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return scheme.lstrip().startswith("[")


def read_rules(text: str) -> Any:
    """The list of rules in a text; UserError where the text is no Python literal."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"scheme: cannot read the rules {text!r}: {error}") from None


def regex(pattern: str, key: str) -> re.Pattern[str]:
    """The compiled pattern, or a UserError that names the config key."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from None


def build_from_rules(rules: Any, spec: ModelSpec, earlier: Sequence[Delta]) -> PlanBuilder:
    """Groups and rates of a list of (regex, group).

    Args:
      rules: the list; a group is ``name`` or ``name(lr=…, decay=…)``, and ``frozen`` freezes.
      spec: the model's spec.
      earlier: deltas of earlier phases.

    Raises:
      UserError: not such a list, a rule that matches no leaf, a rule whose leaves all belong to
        earlier rules, a group with two sets of rates, or a leaf that no rule matches.
    """
    pairs = _pairs(rules)
    builder = PlanBuilder(spec, repr(pairs), deltas=list(earlier))
    factors: dict[str, float] = {}
    for pattern, written in pairs:
        free = _free_leaves(builder, pattern)
        name, rates = _group_call(written)
        if name == FROZEN:
            if rates:
                raise UserError(f"scheme: the group 'frozen' takes no rates; found {written!r}")
            builder.freeze(free)
            continue
        factor, group = parse_group(name, rates)
        known = builder.groups.get(name, group), factors.setdefault(name, factor)
        if known != (group, factor):
            raise UserError(f"scheme: the group {name!r} has two different sets of rates")
        builder.train(name, group, dict.fromkeys(free, factor))
    unmatched = [p for p in spec.paths if p not in builder.group_of]
    if unmatched:
        raise UserError(
            f"scheme: no rule matches {len(unmatched)} leaves, such as {unmatched[0]!r}; end the "
            f"list with ('.*', 'frozen') to freeze the rest"
        )
    return builder


def _pairs(rules: Any) -> list[tuple[str, str]]:
    if not isinstance(rules, list | tuple) or not rules:
        raise UserError(f"scheme: expected text or a list of (regex, group), found {rules!r}")
    for rule in rules:
        if not (
            isinstance(rule, list | tuple)
            and len(rule) == 2
            and all(isinstance(part, str) for part in rule)
        ):
            raise UserError(f"scheme: every rule is (regex, group), two strings; found {rule!r}")
    return [(pattern, group) for pattern, group in rules]


def _free_leaves(builder: PlanBuilder, pattern: str) -> list[str]:
    """The leaves that a rule matches and that no earlier rule has matched."""
    paths = builder.spec.paths
    matched = [p for p in paths if regex(pattern, "scheme").fullmatch(p)]
    if not matched:
        raise UserError(f"scheme: the rule {pattern!r} matches no leaf.{nearest(pattern, paths)}")
    free = [p for p in matched if p not in builder.group_of]
    if not free:
        raise UserError(
            f"scheme: the rule {pattern!r} is shadowed: earlier rules match all {len(matched)} "
            f"leaves that it matches, such as {matched[0]!r}"
        )
    return free


def _group_call(written: str) -> tuple[str, dict[str, Any]]:
    """(name, rates) of a rule's group."""
    call = parse(written)
    if len(call) != 1 or call[0].args:
        raise UserError(f"scheme: a group is 'name' or 'name(lr=…, decay=…)'; found {written!r}")
    if is_door(call[0].name):
        raise UserError(f"scheme: the group of a rule is a label, not a scheme; found {written!r}")
    return call[0].name, dict(call[0].kwargs)

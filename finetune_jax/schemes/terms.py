"""A scheme as a sum of terms: the leftmost term that selects a leaf decides the leaf's group."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from finetune_jax.deltas import Delta
from finetune_jax.doors import is_door
from finetune_jax.errors import UserError
from finetune_jax.grammar import Call, Sum, parse, print_sum
from finetune_jax.schemes.library import SCHEMES, select, split_rates
from finetune_jax.schemes.model_spec import ModelSpec, Selection
from finetune_jax.schemes.plan import FROZEN
from finetune_jax.schemes.plan_builder import PlanBuilder, parse_group


def with_schemes(spec: ModelSpec, doors: list[str]) -> ModelSpec:
    """The spec whose `ModelSpec.select` resolves schemes; `doors` collects the imported names."""
    return dataclasses.replace(spec, resolve_scheme=functools.partial(_select_all, doors))


def _select_all(doors: list[str], scheme: str, spec: ModelSpec) -> Selection:
    builder = build_from_terms(parse(scheme), spec, ())
    doors += builder.doors
    leaves = [p for p, name in builder.group_of.items() if name != FROZEN and p in spec.leaves]
    return Selection(leaves, builder.deltas)


def build_from_terms(terms: Sum, spec: ModelSpec, earlier: Sequence[Delta]) -> PlanBuilder:
    """Groups and rates of a sum.

    Args:
      terms: the sum; terms that only scale rates, if alone, scale the rates of ``full``.
      spec: the model's spec.
      earlier: deltas of earlier phases.

    Raises:
      UserError: an unknown scheme, wrong arguments, or a term whose leaves all belong to terms on
        its left.
    """
    doors = [term.name for term in terms if is_door(term.name)]
    spec = dataclasses.replace(with_schemes(spec, doors), deltas=tuple(earlier))
    selected: list[tuple[Call, dict[str, Any], Selection]] = []
    for term in terms:
        selected.append((term, split_rates(term)[1], select(term, spec)))
    if all(selection.rates is not None for _, _, selection in selected):
        everything = Call("full")
        terms = (everything, *terms)
        selected.insert(0, (everything, {}, SCHEMES["full"](spec)))
    builder = PlanBuilder(spec, print_sum(terms), deltas=list(earlier), doors=doors)
    builder.freeze(spec.paths)
    for delta in earlier:
        builder.freeze([*delta.leaves(spec.leaves)])
    factors = dict.fromkeys(spec.paths, 1.0)
    for term, rates, selection in selected:
        if selection.rates is None:
            _add(builder, str(term), rates, selection)
            continue
        if rates:
            raise UserError(
                f"scheme {builder.text!r}: {term.name!r} scales the rates of the other terms and "
                f"takes no {', '.join(rates)}; give {', '.join(rates)} to another term"
            )
        factors = {p: f * selection.rates[p] for p, f in factors.items()}
    for path in builder.lr:
        # A delta leaf learns at the rate of its module's stage.
        stage = path.split("/", 1)[0]
        builder.lr[path] *= factors.get(path) or factors[spec.leaves_of((stage,))[0]]
    return builder


def _add(builder: PlanBuilder, name: str, rates: dict[str, Any], selection: Selection) -> None:
    """Puts the leaves of a term that are still frozen into the term's group."""
    factor, group = parse_group(name, rates)
    selected = dict.fromkeys(selection.leaves, 1.0)
    for delta in selection.deltas:
        leaves = delta.leaves(builder.spec.leaves)
        if delta not in builder.deltas:
            taken = [p for p in leaves if p in builder.group_of]
            if taken:
                raise UserError(
                    f"scheme {builder.text!r}: {name!r} adds the leaf {taken[0]!r}, which the "
                    f"model already has"
                )
            builder.deltas.append(delta)
            builder.freeze([*leaves])
        selected |= {path: leaf.lr for path, leaf in leaves.items() if leaf.trains}
    free = {path: lr for path, lr in selected.items() if builder.group_of[path] == FROZEN}
    if not free:
        other = builder.group_of[next(iter(selected))]
        if other == name:
            raise UserError(f"scheme {builder.text!r}: the term {name!r} is given twice")
        raise UserError(
            f"scheme {builder.text!r}: the term {name!r} is shadowed: all its leaves belong to "
            f"earlier terms, such as {other!r}; drop {name!r} or put it first"
        )
    if selection.measured:
        if builder.measured:
            raise UserError(f"scheme {builder.text!r}: only one term can measure its rates")
        builder.measured = selection.measured
    builder.train(name, group, {path: factor * lr for path, lr in free.items()})

"""From the scheme that a user writes, as named terms or as ordered rules, to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_jax import tree
from finetune_jax.deltas import Delta
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, parse
from finetune_jax.schemes.model_spec import ModelSpec
from finetune_jax.schemes.plan import FROZEN, Leaf, Plan
from finetune_jax.schemes.plan_builder import PlanBuilder
from finetune_jax.schemes.rules import build_from_rules, is_rules_text, read_rules, regex
from finetune_jax.schemes.terms import build_from_terms

BATCH_NORM = ("frozen", "frozen_all", "track", "reestimate")
DROPOUT = ("eval", "train")
DECAY_MASK = ".*kernel|.*/lora_[ab]"

Scheme = str | Sequence[Any]
"""Text, ordered rules, or the parsed terms of a sum."""


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
    doors: Sequence[str] = (),
) -> Plan:
    """Resolves a scheme against a model.

    Args:
      scheme: ``"last_k(2, lr=0.1) + norm"``, the parsed terms of such a sum, or ordered rules
        ``[("head/.*", "head(lr=10)"), (".*", "frozen")]``, as a list or as the text of a list. The
        leftmost term that selects a leaf decides the leaf's group; so does the first rule that
        matches the whole leaf path. Terms that only scale rates (``llrd(0.75)``) scale the rates of
        all other terms' leaves, or of all leaves if there are no other terms.
      stages: stage names in forward order.
      params: param pytree of the base, concrete or abstract.
      batch_stats: BatchNorm statistics, empty for a model without BatchNorm.
      batch_norm: policy for the running statistics. ``frozen``: a stage uses and keeps its
        statistics if no scale or bias of a BatchNorm of the base trains in it, and follows the
        batches otherwise. ``frozen_all``: every stage uses and keeps its statistics. ``track``:
        every stage follows the batches. ``reestimate``: all statistics are recomputed once on
        training images, then as ``frozen``.
      frozen_dropout: ``eval`` or ``train``: mode of the dropout in stages without trainable leaves.
      decay: regex of the leaf paths to which weight decay may apply, in all groups.
      deltas: deltas of earlier phases; frozen unless a term of the scheme selects them.
      doors: names ``package.module:name`` of programs that made the scheme, for the plan's record.

    Returns:
      The plan.

    Raises:
      UserError: an unknown scheme, wrong arguments, a rule or term that matches no leaf or only
        leaves of earlier ones, or a leaf that no rule matches.
    """
    _require_choice("batch_norm", batch_norm, BATCH_NORM)
    _require_choice("frozen_dropout", frozen_dropout, DROPOUT)
    spec = ModelSpec(tuple(stages), tree.flatten({stage: params[stage] for stage in stages}))
    builder = _build(scheme, spec, deltas)
    if not builder.groups:
        raise UserError(f"scheme {builder.text!r} trains nothing: every leaf is frozen")
    leaves = _leaves(builder, decay)
    statistics = tuple(tree.flatten(batch_stats))
    trained_stages = {leaf.stage for leaf in leaves if leaf.trains}
    return Plan(
        scheme=builder.text,
        stages=spec.stages,
        leaves=leaves,
        groups=builder.groups,
        deltas=tuple(builder.deltas),
        measured=builder.measured,
        batch_norm=batch_norm,
        tracked=_tracked(spec.stages, leaves, statistics, batch_norm),
        statistics=statistics,
        dropout=tuple(s for s in stages if s in trained_stages or frozen_dropout == "train"),
        doors=tuple(dict.fromkeys([*doors, *builder.doors])),
    )


def _build(scheme: Scheme, spec: ModelSpec, earlier: Sequence[Delta]) -> PlanBuilder:
    if isinstance(scheme, str):
        scheme = read_rules(scheme) if is_rules_text(scheme) else parse(scheme)
    terms = tuple(term for term in scheme if isinstance(term, Call))
    if terms and len(terms) == len(scheme):
        return build_from_terms(terms, spec, earlier)
    return build_from_rules(scheme, spec, earlier)


def _leaves(builder: PlanBuilder, decay: str) -> tuple[Leaf, ...]:
    """An entry for each leaf of the base and of the deltas, in forward order of stages."""
    may_decay = regex(decay, "decay_mask")
    base = builder.spec.leaves
    shapes = {path: (tuple(x.shape), np.dtype(x.dtype).name) for path, x in base.items()}
    added: set[str] = set()
    for delta in builder.deltas:
        new = delta.leaves(base)
        shapes |= {path: (leaf.shape, leaf.dtype) for path, leaf in new.items()}
        added |= new.keys()
    leaves = []
    for path in sorted(shapes, key=lambda p: builder.spec.stages.index(p.split("/", 1)[0])):
        group = builder.group_of.get(path, FROZEN)
        trains = group != FROZEN
        leaves.append(
            Leaf(
                path=path,
                shape=shapes[path][0],
                dtype=shapes[path][1],
                group=group,
                lr=builder.lr[path] if trains else 0.0,
                decays=trains and bool(may_decay.fullmatch(path)),
                delta=path in added,
            )
        )
    for name, options in builder.groups.items():
        if options.decay and not any(leaf.decays for leaf in leaves if leaf.group == name):
            raise UserError(
                f"scheme: {name!r} sets a decay, but decay_mask={decay!r} matches no leaf of the "
                f"group"
            )
    return tuple(leaves)


def _tracked(
    stages: Sequence[str], leaves: Sequence[Leaf], statistics: Sequence[str], policy: str
) -> tuple[str, ...]:
    """The stages whose running statistics follow the batches."""
    norms = {p.rsplit("/", 1)[0] for p in statistics}
    with_statistics = {p.split("/", 1)[0] for p in statistics}
    if policy == "frozen_all":
        return ()
    if policy == "track":
        return tuple(s for s in stages if s in with_statistics)
    trained = {
        leaf.stage
        for leaf in leaves
        if leaf.trains and not leaf.delta and leaf.path.rsplit("/", 1)[0] in norms
    }
    return tuple(s for s in stages if s in trained and s in with_statistics)


def _require_choice(key: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise UserError(f"{key}: unknown policy {value!r}.{nearest(value, valid)}")

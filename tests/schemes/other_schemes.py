"""A stand-in for another package that has schemes, programs and deltas of its own."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from finetune_jax.deltas import Delta, DeltaLeaf
from finetune_jax.errors import UserError
from finetune_jax.grammar import parse
from finetune_jax.schemes import ModelSpec, Selection

NUMBER = 3


@dataclasses.dataclass(frozen=True)
class Shift(Delta):
    """y + times * shift after a module with a bias."""

    times: float = 1.0

    kind = "other_shift"

    def leaves(self, base):
        return {self.path("shift"): DeltaLeaf(tuple(self.require(base, "bias").shape))}

    def initial(self, key, base):
        return {path: jnp.zeros(leaf.shape) for path, leaf in self.leaves(base).items()}

    def call(self, module, next_call, args, leaves, memory):
        return next_call(*args) + self.times * leaves[self.path("shift")]


def top_heads(spec: ModelSpec, k: int, on: str = "attn") -> Selection:
    """The modules `on` of the last k blocks."""
    if k > len(spec.blocks):
        raise UserError(f"k must be at most {len(spec.blocks)}, found {k}")
    chosen = tuple(f"{block}/{on}/" for block in spec.blocks[-k:])
    return Selection([p for p in spec.paths if p.startswith(chosen)])


def shifts(spec: ModelSpec, times: float = 1.0) -> Selection:
    """A shift after each query."""
    return Selection(deltas=[Shift(m, times) for m in spec.body_modules("query", "bias")])


def halved(spec: ModelSpec) -> Selection:
    """Half the rate for all leaves but the head's."""
    return Selection(rates={p: 1.0 if p.startswith("head/") else 0.5 for p in spec.paths})


def beside_last(spec: ModelSpec, k: int) -> Selection:
    """The leaves that last_k leaves out."""
    others = {*spec.select(f"last_k({k})").leaves}
    return Selection([p for p in spec.paths if p not in others])


def head_then_all(spec: ModelSpec, epochs: float = 1.0):
    """A program."""
    return [parse(f"head + phase(epochs={epochs})"), parse("full + phase(lr=0.5)")]


def text(spec: ModelSpec):
    return ["head", "full"]


def nothing(spec: ModelSpec):
    return []


def wrong_leaf(spec: ModelSpec):
    return Selection(["head/kernal"])


def wrong_rates(spec: ModelSpec):
    return Selection(rates={"head/kernel": 1.0})


def zero_rates(spec: ModelSpec):
    return Selection(rates=dict.fromkeys(spec.paths, 0.0))


def wrong_delta(spec: ModelSpec):
    return Selection(deltas=["head"])

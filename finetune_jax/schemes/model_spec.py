"""The facts about a model that a scheme reads, and the selection that a term makes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from finetune_jax.deltas import Delta, Shapes
from finetune_jax.errors import UserError, nearest

NORM = re.compile(r"(?:.*/)?norm\d*/(?:scale|bias)")
"""Leaf paths of normalisation layers."""


class Measurement(NamedTuple):
    """Learning rates that are measured on training data before every epoch.

    Attributes:
      statistic: ``rgn`` or ``snr``, see the terms ``auto_rgn`` and ``auto_snr``.
      settings: (name, value) pairs of the statistic's settings.
    """

    statistic: str
    settings: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What one term of a scheme selects.

    Attributes:
      leaves: paths of the base leaves that train.
      deltas: parameters to add.
      rates: factor on the learning rate of each leaf of the base, by path, > 0, for a term that
        selects no leaves and scales the rates of the other terms' leaves.
      measured: how the rates of `leaves` are measured during the run; None for fixed rates.
    """

    leaves: Sequence[str] = ()
    deltas: Sequence[Delta] = ()
    rates: Mapping[str, float] | None = None
    measured: Measurement | None = None


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The facts about a model that a scheme may read.

    Attributes:
      stages: stage names in forward order.
      leaves: shape structs by leaf path, in forward order of stages.
      deltas: deltas that are in place, of an adapter or of earlier phases.
      resolve_scheme: function behind `select`, set by the code that resolves schemes.
    """

    stages: tuple[str, ...]
    leaves: Shapes
    deltas: tuple[Delta, ...] = ()
    resolve_scheme: Callable[[str, ModelSpec], Selection] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def select(self, scheme: str) -> Selection:
        """The leaves and deltas that the text of another scheme selects, each leaf once, no rates.

        Raises:
          UserError: as `finetune_jax.schemes.resolve`.
        """
        if self.resolve_scheme is None:
            raise TypeError("this ModelSpec was made without resolve_scheme")
        return self.resolve_scheme(scheme, self)

    @property
    def paths(self) -> tuple[str, ...]:
        """All leaf paths."""
        return tuple(self.leaves)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The repeated stages, in forward order: the stages whose name ends in a block number."""
        return tuple(s for s in self.stages if re.search(r"block_?\d+$", s))

    @property
    def post_norm_text(self) -> bool:
        """Whether the blocks read texts and normalise after each residual sum, as BERT's do."""
        return {"stem/word/embedding", "stem/norm/scale"} <= self.leaves.keys()

    @property
    def layer_numbers(self) -> dict[str, int]:
        """Layer number by stage: 0 before the first block, one number per block, then the rest.

        These are the numbers of layer-wise learning rate decay: with n blocks, the final norm and
        the head share the number n + 1. A stage between two blocks has the first block's number.
        """
        blocks, numbers, current = self.blocks, dict[str, int](), 0
        for stage in self.stages:
            if stage in blocks:
                current = blocks.index(stage) + 1
            elif blocks and current == len(blocks):
                current += 1
            numbers[stage] = current
        return numbers

    def leaves_of(self, stages: Sequence[str]) -> list[str]:
        """The leaf paths of these stages."""
        return [p for p in self.paths if p.split("/", 1)[0] in stages]

    def modules(self, on: str, leaf: str) -> list[str]:
        """Paths of the modules that have a leaf called `leaf` and that the regex `on` matches.

        Args:
          on: regex of the last part of a module's path (``query``), or of the whole path.
          leaf: name of the leaf, such as ``kernel``.

        Raises:
          UserError: `on` is no regular expression, or matches no module.
        """
        found = [p.rsplit("/", 1)[0] for p in self.paths if p.endswith(f"/{leaf}")]
        try:
            matched = [
                m for m in found if re.fullmatch(on, m) or re.fullmatch(on, m.rsplit("/", 1)[-1])
            ]
        except (re.error, TypeError) as error:
            raise UserError(f"on={on!r}: not a regular expression: {error}") from None
        if not matched:
            names = sorted({m.rsplit("/", 1)[-1] for m in found})
            raise UserError(f"on={on!r} matches no module with a {leaf!r}.{nearest(on, names)}")
        return matched

    def body_modules(self, on: str, leaf: str) -> list[str]:
        """`modules` outside the head, which trains as a whole.

        Raises:
          UserError: `on` matches no module, or only the head.
        """
        modules = [m for m in self.modules(on, leaf) if m.split("/", 1)[0] != "head"]
        if not modules:
            raise UserError(
                f"on={on!r} matches only the head; to train the head, add the term 'head'"
            )
        return modules

    def width(self, block: str) -> int:
        """Width of the tokens of a transformer block; UserError for a block of another kind."""
        path = f"{block}/attn/query/kernel"
        if path not in self.leaves:
            raise UserError(f"this scheme needs transformer blocks; {block!r} has no {path!r}")
        return self.leaves[path].shape[0]

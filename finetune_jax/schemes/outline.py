"""What a scheme may know of a model, and what it may ask for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_jax.deltas import Delta
from finetune_jax.errors import UserError, nearest

NORM = re.compile(r"(?:.*/)?norm\d*/(?:scale|bias)")
"""Leaf paths of normalisation layers."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a scheme may know of a model.

    Attributes:
      stages: names in forward order.
      leaves: shape structs by leaf path, in forward order of stages.
    """

    stages: tuple[str, ...]
    leaves: Mapping[str, Any]

    @property
    def paths(self) -> tuple[str, ...]:
        """All leaf paths."""
        return tuple(self.leaves)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The repeated stages, in forward order: those whose name ends in a block number."""
        return tuple(s for s in self.stages if re.search(r"block_?\d+$", s))

    @property
    def post_norm_text(self) -> bool:
        """Whether the blocks read texts, and normalise after each residual sum, as BERT's do."""
        return {"stem/word/embedding", "stem/norm/scale"} <= self.leaves.keys()

    @property
    def layers(self) -> dict[str, int]:
        """Layer number of each stage: 0 before the first block, then one per block, then the rest.

        The numbering of layer-wise learning rate decay: with n blocks, the final norm and the head
        share the number n + 1.
        """
        blocks, numbers, seen = self.blocks, {}, 0
        for stage in self.stages:
            if stage in blocks:
                seen = blocks.index(stage) + 1
                numbers[stage] = seen
            else:
                numbers[stage] = 0 if not seen else len(blocks) + 1
        return numbers

    def of_stages(self, stages: Sequence[str]) -> list[str]:
        """The leaf paths of some stages."""
        return [p for p in self.paths if p.split("/", 1)[0] in stages]

    def modules(self, on: str, leaf: str) -> list[str]:
        """Paths of modules with a leaf called `leaf` whose own name or whole path matches `on`."""
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

    def beside_head(self, on: str, leaf: str) -> list[str]:
        """`modules` without the head, which trains as itself."""
        modules = [m for m in self.modules(on, leaf) if m.split("/", 1)[0] != "head"]
        if not modules:
            raise UserError(f"on={on!r} matches the head alone; add the term 'head' to train it")
        return modules

    def width(self, block: str) -> int:
        """Width of the tokens of a transformer block."""
        path = f"{block}/attn/query/kernel"
        if path not in self.leaves:
            raise UserError(f"this scheme needs transformer blocks; {block!r} has no {path!r}")
        return self.leaves[path].shape[0]


@dataclasses.dataclass(frozen=True)
class Claim:
    """What one term of a scheme asks for.

    Attributes:
      leaves: paths of base leaves that train.
      deltas: parameters to add.
      rates: factor on the learning rate by path, for a term that claims nothing itself.
      measured: (statistic, settings) when the rates are measured on data during the run.
    """

    leaves: Sequence[str] = ()
    deltas: Sequence[Delta] = ()
    rates: Mapping[str, float] | None = None
    measured: tuple[str, tuple[tuple[str, Any], ...]] | None = None

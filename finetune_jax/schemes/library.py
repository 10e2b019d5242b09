"""The named schemes: each says which leaves of a model train.

A scheme is a function of the model's outline and its own arguments that returns the leaf paths it
claims. It decides nothing else: rates, decay and BatchNorm modes belong to the plan.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from finetune_jax.errors import UserError, nearest

_NORM = re.compile(r"(?:.*/)?norm\d*/(?:scale|bias)")


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a scheme may know of a model: its stages in forward order and its leaf paths."""

    stages: tuple[str, ...]
    paths: tuple[str, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The repeated stages, in forward order: those whose name ends in a block number."""
        return tuple(s for s in self.stages if re.search(r"block_?\d+$", s))

    def of_stages(self, stages: tuple[str, ...]) -> list[str]:
        """The leaf paths of some stages."""
        return [p for p in self.paths if p.split("/", 1)[0] in stages]


def full(outline: Outline) -> list[str]:
    """Everything trains."""
    return list(outline.paths)


def linear_probe(outline: Outline) -> list[str]:
    """Only the head trains (Kornblith et al. 2019, arXiv 1805.08974)."""
    return outline.of_stages(("head",))


def _block_count(outline: Outline, k: int, name: str) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= len(outline.blocks):
        raise UserError(
            f"{name}(k): k must be a whole number from 1 to {len(outline.blocks)}, the number of "
            f"blocks of this model; found {k!r}"
        )
    return k


def last_k(outline: Outline, k: int) -> list[str]:
    """The last k blocks and all that follows them: final norm and head (VPT's Partial-k)."""
    first = outline.blocks[-_block_count(outline, k, "last_k")]
    return outline.of_stages(outline.stages[outline.stages.index(first) :])


def first_k(outline: Outline, k: int) -> list[str]:
    """The first k blocks and all that precedes them (the stem). Not the head: add linear_probe."""
    last = outline.blocks[_block_count(outline, k, "first_k") - 1]
    return outline.of_stages(outline.stages[: outline.stages.index(last) + 1])


def stages(outline: Outline, *names: str) -> list[str]:
    """Exactly the stages whose whole name matches one of the regexes: surgical fine-tuning.

    Lee et al. 2022, arXiv 2210.11466: ``stages('stem', 'layer1_.*')``.
    """
    chosen: list[str] = []
    if not names:
        raise UserError("stages(...) needs at least one stage name, such as stages('stem')")
    for name in names:
        try:
            matched = [s for s in outline.stages if re.fullmatch(name, s)]
        except (re.error, TypeError) as error:
            raise UserError(f"stages({name!r}): not a regular expression: {error}") from None
        if not matched:
            raise UserError(f"stages({name!r}) matches no stage.{nearest(name, outline.stages)}")
        chosen += matched
    return outline.of_stages(tuple(chosen))


def norm_only(outline: Outline) -> list[str]:
    """Scale and bias of every normalisation layer, and the head (arXiv 2003.00152)."""
    norms = [p for p in outline.paths if _NORM.fullmatch(p)]
    if not norms:
        raise UserError("norm_only: this model has no normalisation layer")
    return norms + outline.of_stages(("head",))


def bias_only(outline: Outline) -> list[str]:
    """Every bias, and the whole head: BitFit (Ben Zaken et al. 2021, arXiv 2106.10199)."""
    biases = [p for p in outline.paths if p.endswith("/bias") and not p.startswith("head/")]
    return biases + outline.of_stages(("head",))


SCHEMES: dict[str, Callable[..., list[str]]] = {
    f.__name__: f for f in (full, linear_probe, last_k, first_k, stages, norm_only, bias_only)
}

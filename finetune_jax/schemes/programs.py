"""Programs: names that stand for several phases, such as ``lp_ft`` or ``gradual(epochs=1)``.

A program is a function of the model's `ModelSpec` and of the program's own arguments that returns
the sum of terms of each phase.
"""

from __future__ import annotations

import itertools

from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, Sum, call
from finetune_jax.schemes.arguments import non_negative_int, positive
from finetune_jax.schemes.model_spec import ModelSpec

_ORDERS = ("top_down", "bottom_up")


def lp_ft(spec: ModelSpec, solve: str = "lbfgs") -> list[Sum]:
    """Linear probe to convergence, then everything (Kumar et al. 2022, arXiv 2202.10054)."""
    del spec
    return [(Call("linear_probe"), call("phase", solve=solve)), (Call("full"),)]


def gradual(
    spec: ModelSpec, epochs: float = 1.0, order: str = "top_down", groups: int = 0
) -> list[Sum]:
    """Gradual unfreezing: one more group of blocks per phase (Howard & Ruder 2018, 1801.06146).

    Args:
      spec: the model's spec.
      epochs: length of each phase but the last, which takes the rest of the run.
      order: ``top_down`` starts with the stages after the blocks; ``bottom_up`` starts with the
        first blocks and the stages after the blocks.
      groups: number of groups into which the blocks are cut; 0 makes each block a group.

    Raises:
      UserError: an argument is invalid, or the model has no blocks.
    """
    if order not in _ORDERS:
        raise UserError(f"unknown order {order!r}.{nearest(order, _ORDERS)}")
    non_negative_int("groups", groups)
    positive("epochs", epochs)
    *body, top = _stage_groups(spec, groups)
    body = body[::-1] if order == "top_down" else body
    phases = [top] if order == "top_down" else []
    for group in body:
        before = phases[-1] if phases else top
        phases.append(sorted([*before, *group], key=spec.stages.index))
    sums = [call("stages", *names) for names in phases]
    return [*((term, call("phase", epochs=epochs)) for term in sums[:-1]), (sums[-1],)]


def _stage_groups(spec: ModelSpec, count: int) -> list[list[str]]:
    """The stages in `count` groups of about equally many blocks, and the stages after the blocks.

    The stages before the blocks belong to the first group, a stage between two blocks to the group
    of the first of them.
    """
    stages, blocks = spec.stages, spec.blocks
    if not blocks:
        raise UserError("gradual unfreezing needs blocks; this model has no blocks")
    count = min(count or len(blocks), len(blocks))
    # Each group starts at the block with this number.
    numbers = [round(i * len(blocks) / count) for i in range(count)]
    end = stages.index(blocks[-1]) + 1
    edges = [0, *(stages.index(blocks[number]) for number in numbers[1:]), end, len(stages)]
    return [list(stages[a:b]) for a, b in itertools.pairwise(edges)]


def chain_thaw(spec: ModelSpec, epochs: float = 1.0) -> list[Sum]:
    """Head, then each stage alone from the first, then everything (Felbo et al. 2017, 1708.00524).

    Every phase starts with a fresh optimizer; the last phase takes the rest of the run.
    """
    positive("epochs", epochs)
    options = call("phase", epochs=epochs, reset=True)
    singles = [(call("stages", stage), options) for stage in ("head", *spec.stages[:-1])]
    return [*singles, (Call("full"), call("phase", reset=True))]


def fine_tune(spec: ModelSpec, freeze_epochs: float = 1.0) -> list[Sum]:
    """fastai's ``fine_tune``: head and norms for some epochs, then everything at half the rate.

    Both phases use a one-cycle schedule of the learning rate alone (fastai also cycles the
    momentum). The rates are ``slice(base)`` in the first phase and ``slice(base / 200, base / 2)``
    in the second.
    """
    del spec
    positive("freeze_epochs", freeze_epochs)
    first = call("phase", epochs=freeze_epochs, schedule="onecycle(pct=0.99)")
    second = call("phase", lr=0.5, schedule="onecycle(pct=0.3, div=5)", reset=True)
    return [
        (Call("head"), call("norm", lr=0.1), first),
        (Call("full"), call("slice", 0.01, 1.0), second),
    ]


PROGRAMS = (lp_ft, gradual, chain_thaw, fine_tune)

"""The frozen audit: after every run, frozen is bit-identical to the base and the rest has moved."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from finetune_jax import tree
from finetune_jax.progress import say
from finetune_jax.schemes import Plan


class AuditError(RuntimeError):
    """What was declared frozen changed, or what was declared trainable did not."""


def snapshot(variables: dict[str, Any]) -> dict[str, str]:
    """Checksums of all leaves of ``{"params": …, "batch_stats": …}``, taken before training."""
    return tree.leaf_checksums(variables)


# A head of zeros holds back the gradient of all below it for a step, the B of a LoRA that of its A
# for another, and a warm-up starts at a rate of 0.
_STEPS_TO_MOVE = 4


def audit(
    plan: Plan,
    before: dict[str, str],
    variables: dict[str, Any],
    idle: Collection[str] = (),
    *,
    steps: int = _STEPS_TO_MOVE,
    reached: Callable[[], Collection[str]] = tuple,
) -> dict[str, int]:
    """Compares variables after a run with a `snapshot` of the base.

    A leaf that gradients reached without moving it is no dead leaf: its updates were smaller than
    the last bit of its values, as those of a key's bias are, to which softmax is blind. It is said
    and counted, as is one of a delta that `may_have_zero_gradient`.

    Args:
      plan: what was to train.
      before: snapshot of the base.
      variables: after the run, not averaged.
      idle: trainable leaves that were given a rate of 0 and need not have moved.
      steps: done; in fewer than 4, leaves that did not move are counted instead of refused.
      reached: gives the trainable leaves that gradients reached; asked only if some did not move.

    Returns:
      Counts: ``frozen_leaves``, ``frozen_statistics``, ``moved_leaves``, ``unmoved_leaves``.

    Raises:
      AuditError: naming every frozen leaf or statistic that changed and every trainable leaf that
        did not move.
    """
    after = snapshot(variables)
    free = {f"params/{p}" for p in plan.trainable}
    tracked = {f"batch_stats/{p}" for p in plan.tracked_statistics}
    changed = {path for path in before if before[path] != after[path]}
    broken = sorted(changed - free - tracked)
    still = sorted(free - changed - {f"params/{p}" for p in idle})
    if still and not broken:
        excused = {f"params/{p}" for p in reached()} if steps >= _STEPS_TO_MOVE else {*still}
        resting = tuple(f"params/{d.path('')}" for d in plan.deltas if d.may_have_zero_gradient)
        excused |= {path for path in still if path.startswith(resting)}
        names = [path for path in still if path in excused]
        still = [path for path in still if path not in excused]
        if names:
            say(f"audit: {len(names)} trainable leaves did not move by a bit: {_some(names)}")
    problems = []
    if broken:
        problems.append(f"{len(broken)} frozen leaves changed: {_some(broken)}")
    if still:
        problems.append(f"{len(still)} trainable leaves did not move: {_some(still)}")
    if problems:
        raise AuditError("frozen audit failed: " + "; ".join(problems))
    frozen = before.keys() - free - tracked
    return {
        "frozen_leaves": sum(p.startswith("params/") for p in frozen),
        "frozen_statistics": sum(p.startswith("batch_stats/") for p in frozen),
        "moved_leaves": len(free & changed),
        "unmoved_leaves": len(free - changed),
    }


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:8]) + (", …" if len(paths) > 8 else "")

"""The frozen audit: after every run, frozen is bit-identical to the base and the rest has moved."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from finetune_jax import tree
from finetune_jax.schemes import Plan


class AuditError(RuntimeError):
    """What was declared frozen changed, or what was declared trainable did not."""


def snapshot(variables: dict[str, Any]) -> dict[str, str]:
    """Checksums of all leaves of ``{"params": …, "batch_stats": …}``, taken before training."""
    return tree.leaf_checksums(variables)


def audit(
    plan: Plan, before: dict[str, str], variables: dict[str, Any], idle: Collection[str] = ()
) -> dict[str, int]:
    """Compares variables after a run with a `snapshot` of the base.

    Args:
      plan: what was to train.
      before: snapshot of the base.
      variables: after the run, not averaged.
      idle: trainable leaves that were given a rate of 0 and need not have moved.

    Returns:
      Counts: ``frozen_leaves``, ``frozen_statistics``, ``moved_leaves``.

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
    problems = []
    if broken:
        problems.append(f"{len(broken)} frozen leaves changed: {', '.join(broken[:8])}")
    if still:
        problems.append(f"{len(still)} trainable leaves did not move: {', '.join(still[:8])}")
    if problems:
        raise AuditError("frozen audit failed: " + "; ".join(problems))
    frozen = before.keys() - free - tracked
    return {
        "frozen_leaves": sum(p.startswith("params/") for p in frozen),
        "frozen_statistics": sum(p.startswith("batch_stats/") for p in frozen),
        "moved_leaves": len(free & changed),
    }

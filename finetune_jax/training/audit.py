"""The frozen audit: after every run, frozen leaves are bit-identical and trainable leaves moved."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from finetune_jax import tree
from finetune_jax.errors import CheckFailed
from finetune_jax.progress import say
from finetune_jax.schemes import Plan


class AuditError(CheckFailed):
    """A leaf that the plan freezes changed, or a leaf that the plan trains did not change."""


def snapshot(variables: dict[str, Any]) -> dict[str, str]:
    """Returns checksums of all leaves of ``{"params": …, "batch_stats": …}``, by leaf path."""
    return tree.leaf_checksums(variables)


# A head of zeros gives all leaves below it no gradient for one step, the factor B of a LoRA gives
# its factor A no gradient for another step, and a warm-up starts at a learning rate of 0.
STEPS_TO_MOVE = 4
"""Fewest steps after which the audit demands that every trainable leaf has moved."""


def audit(
    plan: Plan,
    before: dict[str, str],
    variables: dict[str, Any],
    idle: Collection[str] = (),
    *,
    steps: int = STEPS_TO_MOVE,
    reached: Callable[[], Collection[str]] = tuple,
) -> dict[str, int]:
    """Compares variables after training with the `snapshot` from before training.

    A trainable leaf that gradients reached may still not have moved, because its updates were
    smaller than the last bit of its values. An example is the bias of an attention key, which
    softmax does not depend on. Such a leaf, and an unmoved leaf of a delta that
    `may_have_zero_gradient`, is no error: the audit prints and counts it.

    Args:
      plan: plan that was trained.
      before: snapshot from before training.
      variables: variables after training, not averaged.
      idle: trainable leaves whose learning rate was 0, which need not have moved.
      steps: number of steps done; after fewer than 4 steps, leaves that did not move are counted
        and are no error.
      reached: function that gives the paths of trainable leaves that gradients reached; it is
        called only if some leaves did not move.

    Returns:
      Counts: ``frozen_leaves``, ``frozen_statistics``, ``moved_leaves``, ``unmoved_leaves``.

    Raises:
      AuditError: the message names every frozen leaf or statistic that changed and every trainable
        leaf that did not move.
    """
    after = snapshot(variables)
    trainable = {f"params/{p}" for p in plan.trainable}
    tracked = {f"batch_stats/{p}" for p in plan.tracked_statistics}
    changed = {path for path in before if before[path] != after[path]}
    broken = sorted(changed - trainable - tracked)
    still = sorted(trainable - changed - {f"params/{p}" for p in idle})
    if still and not broken:
        excused = {f"params/{p}" for p in reached()} if steps >= STEPS_TO_MOVE else {*still}
        zero = tuple(f"params/{d.path('')}" for d in plan.deltas if d.may_have_zero_gradient)
        excused |= {path for path in still if path.startswith(zero)}
        names = [path for path in still if path in excused]
        still = [path for path in still if path not in excused]
        if names:
            say(f"audit: {len(names)} trainable leaves did not change: {_some(names)}")
    problems, cures = [], ["No artifact was written."]
    if broken:
        problems.append(f"{len(broken)} frozen leaves changed: {_some(broken)}")
        cures.append("A frozen leaf that changes is a bug: report it with config.json of the run.")
    if still:
        problems.append(f"{len(still)} trainable leaves did not move: {_some(still)}")
        cures.append("Leave out of the scheme what no gradient reaches.")
    if problems:
        text = "; ".join(problems).removesuffix(", …")
        raise AuditError(f"frozen audit failed: {text}. {' '.join(cures)}")
    frozen = before.keys() - trainable - tracked
    return {
        "frozen_leaves": sum(p.startswith("params/") for p in frozen),
        "frozen_statistics": sum(p.startswith("batch_stats/") for p in frozen),
        "moved_leaves": len(trainable & changed),
        "unmoved_leaves": len(trainable - changed),
    }


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:8]) + (", …" if len(paths) > 8 else "")

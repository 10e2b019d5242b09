"""Lines of the ledger: what is recorded when an arm has trained, failed or been scored."""

from __future__ import annotations

from typing import Any

from finetune_jax.ablation.arm import Arm
from finetune_jax.ablation.ledger import Record
from finetune_jax.ablation.outcome import RunCost
from finetune_jax.ablation.worker import ScoreSpec, spec_hash

TRAINED = "trained"
"""Kind (``what``) of the record of an arm that has trained or failed."""


def scored_kind(spec: ScoreSpec) -> str:
    """Kind (``what``) of the record of an arm that was scored."""
    return f"scored {spec_hash(spec)}"


def trained_record(arm: Arm, result: dict[str, Any]) -> Record:
    """The record of an arm that has trained or failed.

    Args:
      arm: the arm.
      result: see `worker.read_result`.
    """
    if "error" in result:
        return {**_common(arm, TRAINED), "error": result["error"]}
    step = result["cost"] or {}
    cost = RunCost(
        trainable=result["trainable_params"],
        total=result["total_params"],
        step_flops=step.get("flops", 0.0),
        train_flops=result["train_flops"],
        peak_bytes=step.get("argument_bytes", 0) + step.get("temp_bytes", 0),
        optimizer_bytes=step.get("optimizer_bytes", 0),
        checkpoint_bytes=step.get("checkpoint_bytes", 0),
        seconds=result["seconds"],
    )
    return {
        **_common(arm, TRAINED),
        "steps": result["steps"],
        "validation": result["validation"],
        "cost": vars(cost),
    }


def scored_record(arm: Arm, spec: ScoreSpec, scores: dict[str, Any]) -> Record:
    """The record of an arm that was scored.

    Args:
      arm: the arm.
      spec: what the arm was scored on.
      scores: see `worker.read_scores`.
    """
    return {**_common(arm, scored_kind(spec)), "asked": spec, **scores}


def _common(arm: Arm, what: str) -> Record:
    return {
        "key": arm.key,
        "what": what,
        "row": arm.row,
        "point": arm.point,
        "seed": arm.seed,
        "share": arm.share,
    }

"""Lines of the ledger: what is recorded when an arm has trained, failed or been scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_jax import identity
from finetune_jax.ablation.arm import Arm
from finetune_jax.ablation.outcome import RunCost
from finetune_jax.ablation.worker import ScoreSpec, spec_hash
from finetune_jax.errors import UserError
from finetune_jax.files import digest

Record = dict[str, Any]
"""Content of a line; ``key`` is the key of the arm, ``what`` the kind of the record: `TRAINED`, or
``scored`` followed by the hash of the score specification, or `ACCEPTED`."""

TRAINED = "trained"
"""Kind (``what``) of the record of an arm that has trained or failed."""

ACCEPTED = "accepted"
"""Kind (``what``) of the record of changed data, tokenizers or weights that the user accepted."""

_NUMBER = (int, float)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "key": str, "what": str, "row": str, "point": dict, "seed": int, "share": _NUMBER,
    "config": str, "made_of": dict, "error": str, "steps": int, "validation": dict, "cost": dict,
    "asked": dict, "test": dict, "others": dict, "changes": list,
}  # fmt: skip
"""Types of all keys of records."""

_ARM = ("row", "point", "seed", "share")
_LATER = frozenset(("config", "made_of", "changes"))
"""Keys that only records with a checksum have."""


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
        return {**_common(arm, TRAINED, result), "error": result["error"]}
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
        **_common(arm, TRAINED, result),
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
    kept = {key: scores[key] for key in ("test", "others")}
    return {**_common(arm, scored_kind(spec), scores), "asked": spec, **kept}


def accepted_record(
    old: Mapping[str, str], new: Mapping[str, str], changes: Sequence[str]
) -> Record:
    """The record of a change that the user accepted.

    Args:
      old: digests of what the earlier records were made of.
      new: digests of what is there now.
      changes: lines that say what changed.
    """
    return {"key": accepted_key(old, new), "what": ACCEPTED, "changes": list(changes)}


def accepted_key(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Key of the record that accepts a change; arguments as for `accepted_record`."""
    return digest([dict(old), dict(new)])[:16]


def _common(arm: Arm, what: str, result: Mapping[str, Any]) -> Record:
    # The record of an arm that failed, or that an earlier version trained, has no `made_of`.
    found = result.get("made_of")
    parts = identity.digests(found) if found else dict(arm.made_of)
    versions = found["versions"] if found else identity.versions()
    return {
        "key": arm.key,
        "what": what,
        "row": arm.row,
        "point": arm.point,
        "seed": arm.seed,
        "share": arm.share,
        "config": arm.config_hash,
        "made_of": {**parts, "versions": versions},
    }


def check_record(record: Any, *, sealed: bool) -> Record:
    """Returns a record, after checks of its keys and types.

    Args:
      record: JSON value.
      sealed: whether the record has a checksum; a record without has only keys of early versions.

    Raises:
      UserError: the value is no record; the message says why.
    """
    if not isinstance(record, dict):
        raise UserError(f"expected a JSON object, found {type(record).__name__}")
    for key in ("key", "what", *_needed(record)):
        if key not in record:
            raise UserError(f"the record has no {key!r}")
    for key, kinds in _TYPES.items():
        value = record.get(key)
        if key in record and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise UserError(f"{key!r} is {str(value):.40}, which has another type")
    unknown = sorted(k for k in record if k not in _TYPES or (k in _LATER and not sealed))
    if unknown and not sealed:
        raise UserError(f"a record without a checksum has no key {unknown[0]!r}")
    _check_values(record)
    return record


def _needed(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys that a record of this kind has."""
    what = record.get("what")
    if what == ACCEPTED:
        return ("changes",)
    if what == TRAINED:
        return (*_ARM, "error") if "error" in record else (*_ARM, "steps", "validation", "cost")
    if isinstance(what, str) and what.startswith("scored "):
        return (*_ARM, "asked", "test", "others")
    raise UserError(f"unknown kind of record {str(what):.40}")


def _check_values(record: Mapping[str, Any]) -> None:
    """Checks the values inside of a record; raises UserError."""
    if "cost" in record:
        names = {field.name for field in dataclasses.fields(RunCost)}
        cost = record["cost"]
        if cost.keys() != names or not all(isinstance(x, _NUMBER) for x in cost.values()):
            raise UserError(f"'cost' is not a number for each of {', '.join(sorted(names))}")
    if not all(isinstance(x, dict) for x in record.get("others", {}).values()):
        raise UserError("'others' has a value that is no object")
    if not all(isinstance(x, str) for x in record.get("changes", [])):
        raise UserError("'changes' has a value that is no text")
    if "made_of" in record and not isinstance(record["made_of"].get("versions"), dict):
        raise UserError("'made_of' has no versions")

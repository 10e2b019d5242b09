"""Deltas from JSON: this package's kinds by name, others by ``package.module:Class``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finetune_jax import schema
from finetune_jax.deltas.adapters import AdaptFormer, Bottleneck
from finetune_jax.deltas.base import Delta
from finetune_jax.deltas.lora import LoRA
from finetune_jax.deltas.prompts import Prompt
from finetune_jax.deltas.scaling import IA3, SSF
from finetune_jax.deltas.sparse import Sparse
from finetune_jax.doors import is_door, open_door
from finetune_jax.errors import UserError, nearest

KINDS: dict[str, type[Delta]] = {
    c.kind: c for c in (LoRA, IA3, SSF, Bottleneck, AdaptFormer, Prompt, Sparse)
}
"""This package's kinds of delta, by their names in JSON."""


def from_json(values: Any) -> Delta:
    """Rebuilds a delta from the result of `Delta.to_json`.

    A kind ``package.module:Class`` is imported, which runs the code of the package. A reader of
    files must first ask whether that is allowed: see `doors_of` and `doors.require_allowed`.

    Raises:
      UserError: an unknown kind, or options that the kind does not have or of another type.
    """
    options = dict(schema.an_object(values, "delta"))
    kind = schema.text()(options.pop("kind", None), "delta.kind")
    cls = _class_of(kind)
    options = schema.options_of(cls, options, f"delta {kind!r}")
    for name, value in options.items():
        if isinstance(value, int) and value < 0:
            raise UserError(
                f"delta {kind!r}.{name}: expected a number of at least 0, found {value}"
            )
    return cls(**options)


def doors_of(deltas: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names ``package.module:Class`` that `from_json` would import for these JSON objects."""
    kinds = dict.fromkeys(str(values.get("kind")) for values in deltas)
    return tuple(kind for kind in kinds if is_door(kind))


def _class_of(kind: str) -> type[Delta]:
    if is_door(kind):
        cls = open_door(kind, "delta", type)
        if not issubclass(cls, Delta):
            raise UserError(f"delta {kind!r}: expected a subclass of finetune_jax.deltas.Delta")
        return cls
    if kind not in KINDS:
        raise UserError(
            f"unknown delta {kind!r}; a delta of another package is written "
            f"package.module:Class.{nearest(kind, KINDS)}"
        )
    return KINDS[kind]

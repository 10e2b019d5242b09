"""From names of models such as ``resnet20_cifar`` and ``vit_ti16`` to staged Flax modules."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.doors import is_door, open_door
from finetune_jax.errors import UserError, nearest
from finetune_jax.models.options import split, with_options
from finetune_jax.models.registry import FAMILY_MODULES, Entry, entry_of_class
from finetune_jax.models.spellings import spelled, unknown
from finetune_jax.models.staged import StagedModel

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

_PACKAGE = __name__.rpartition(".")[0]

_ENTRIES: dict[str, dict[str, Entry]] = {
    module: importlib.import_module(f"{_PACKAGE}.{module}").ENTRIES for module in FAMILY_MODULES
}

MODELS: dict[str, Entry] = {
    name: entry for entries in _ENTRIES.values() for name, entry in entries.items()
}
"""All models of this package by name; use `entry_of` to look a name up."""

GENERIC: dict[str, Entry] = {
    name: entry
    for module in FAMILY_MODULES
    for name, entry in getattr(
        importlib.import_module(f"{_PACKAGE}.{module}"), "GENERIC", {}
    ).items()
}
"""Entries without sizes by name, such as ``bert``; options in the name of a model give the sizes.

See `finetune_jax.models.options`.
"""

MODULE_OF_FAMILY: dict[str, str] = {
    entry.family: module for module, entries in _ENTRIES.items() for entry in entries.values()
}
"""For each family of this package, the member of `FAMILY_MODULES` that defines it."""


def entry_of(name: str) -> Entry:
    """The registry's entry of a model.

    Args:
      name: a key of `MODELS`; a key of `MODELS` or `GENERIC` with options, such as
        ``bert(width=128, depth=2, heads=2)``, see `finetune_jax.models.options`; or
        ``package.module:NAME`` of an `Entry` or a `StagedModel` class in another package, see
        `finetune_jax.models.registry`.

    Raises:
      UserError: no such model, with the nearest name, or an option that does not fit.
    """
    if name in MODELS:
        return MODELS[name]
    if is_door(name):
        return _entry_behind(name)
    base, options = split(name) if "(" in name else (name, {})
    known = {**MODELS, **GENERIC}
    if base in known:
        return with_options(base, known[base], options)
    if found := spelled(name):
        raise UserError(f"model.name: unknown model {name!r}. Did you mean {found.model!r}?")
    raise UserError(
        f"model.name: unknown model {base!r}.{unknown(base)}. A model of another package is "
        f"named package.module:NAME."
    )


@functools.cache
def _entry_behind(name: str) -> Entry:
    found: Entry | type = open_door(name, "model.name", (Entry, type))
    if isinstance(found, Entry):
        return found
    if not issubclass(found, StagedModel):
        raise UserError(
            f"model.name: {name!r}: expected an Entry or a subclass of StagedModel, found the "
            f"class {found.__name__}"
        )
    return entry_of_class(name, found)


def build(
    name: str,
    num_classes: int,
    *,
    image_size: int = 0,
    dtype: str = "float32",
    remat: bool = False,
    dropout: float = 0.0,
    head: str = "",
) -> StagedModel:
    """Builds the module of a model.

    Args:
      name: name of the model, see `entry_of`.
      num_classes: number of outputs of the head, at least 1.
      image_size: side of the input images in pixels, which must be a multiple of the patch size;
        0 for no check.
      dtype: compute dtype, ``float32`` or ``bfloat16``; parameters are f32 in both cases.
      remat: whether activations are recomputed in the backward pass.
      dropout: dropout rate in [0, 1).
      head: one of the entry's `heads`; empty for the default.

    Raises:
      UserError: unknown name or dtype, or a value out of range.
    """
    entry = entry_of(name)
    if dtype not in DTYPES:
        raise UserError(f"model.dtype: unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}")
    if num_classes < 1:
        raise UserError(f"the head needs at least one class, not {num_classes}")
    if not 0 <= dropout < 1:
        raise UserError(f"model.dropout: expected a rate in [0, 1), found {dropout}")
    if dropout and not entry.dropout:
        raise UserError(f"model.dropout: {name} has no dropout; expected 0, found {dropout}")
    if image_size % entry.patch:
        below = image_size - image_size % entry.patch
        valid = " or ".join(str(x) for x in (below, below + entry.patch) if x)
        raise UserError(
            f"data.image_size: {image_size} is not a multiple of {entry.patch}, the side of a "
            f"patch of the model {name}; expected a multiple, such as {valid}"
        )
    if head and head not in entry.heads:
        if not entry.heads:
            raise UserError(f"model.head: {name} has one head only; expected '', found {head!r}")
        raise UserError(f"model.head: unknown head {head!r}.{nearest(head, entry.heads)}")
    choice = {"head_kind": head or entry.heads[0]} if entry.heads else {}
    return entry.build(
        num_classes=num_classes, dtype=DTYPES[dtype], remat=remat, dropout=dropout, **choice
    )


def initialise(model: StagedModel, image_size: int, key: jax.Array) -> dict[str, Any]:
    """Draws all variables of a model.

    Works under `jax.eval_shape` for the abstract tree. The top-level keys of params are the
    stages. Their forward order is `model.stages`, because jit returns dicts sorted by key.

    Args:
      model: staged module.
      image_size: side of the input images in pixels; for a model of texts, the number of tokens.
      key: PRNG key.

    Returns:
      ``{"params": {stage: …}, "batch_stats": {stage: …}}`` with f32 leaves. ``batch_stats`` is
      empty for a model without BatchNorm.
    """
    variables = model.init(key, model.example(image_size))
    stats = variables.get("batch_stats", {})
    return {
        "params": {name: variables["params"][name] for name in model.stages},
        "batch_stats": {name: stats[name] for name in model.stages if name in stats},
    }


def initial_variables(
    model: StagedModel, image_size: int, seed: int = 0, *, stages: Collection[str] | None = None
) -> dict[str, Any]:
    """The variables that `initialise` draws from a seed, for some stages; shape structs for others.

    A loaded model needs random values for its new head alone. The program that draws only the
    head's values compiles in a fraction of the time, and the values are the same.

    Args:
      model: staged module.
      image_size: side of the input images in pixels; for a model of texts, the number of tokens.
      seed: seed of the PRNG key.
      stages: stages whose values are drawn; None draws all stages, () draws none.
    """
    drawn_stages = frozenset(model.stages if stages is None else stages)
    key = jax.random.key(seed)
    drawn = _drawer(model, image_size, drawn_stages)(key)
    return {c: {**abstract, **drawn[c]} for c, abstract in _shapes(model, image_size).items()}


@functools.cache
def _shapes(model: StagedModel, image_size: int) -> dict[str, Any]:
    """Shape structs of all variables; traced once for all runs of the same model."""
    shapes: dict[str, Any] = jax.eval_shape(
        lambda key: initialise(model, image_size, key), jax.random.key(0)
    )
    return shapes


@functools.cache
def _drawer(
    model: StagedModel, image_size: int, stages: frozenset[str]
) -> Callable[[jax.Array], dict[str, Any]]:
    """The compiled function that draws the stages; compiled once for all runs of the same model."""

    def draw(key: jax.Array) -> dict[str, Any]:
        variables = initialise(model, image_size, key)
        return {c: {s: x for s, x in v.items() if s in stages} for c, v in variables.items()}

    return jax.jit(draw)

"""Model registry: names such as ``resnet20_cifar`` and ``vit_ti16`` to staged Flax modules."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError, nearest
from finetune_jax.models import (
    bit,
    convnext,
    mixer,
    mobilenet_v1,
    mobilenet_v2,
    resnet,
    resnet8_mlperf,
    resnet_cifar,
    squeezenet,
    text_encoder,
    vgg,
    vit,
)
from finetune_jax.models.registry import Entry, Inputs
from finetune_jax.models.staged import EVAL, Mode, StagedModel

__all__ = [
    "EVAL", "MODELS", "Entry", "Inputs", "Mode", "StagedModel", "build", "entry_of",
    "initial_variables", "initialise",
]  # fmt: skip

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

MODELS: dict[str, Entry] = {
    **bit.ENTRIES,
    **convnext.ENTRIES,
    **mixer.ENTRIES,
    **mobilenet_v1.ENTRIES,
    **mobilenet_v2.ENTRIES,
    **resnet.ENTRIES,
    **resnet8_mlperf.ENTRIES,
    **resnet_cifar.ENTRIES,
    **squeezenet.ENTRIES,
    **text_encoder.ENTRIES,
    **vgg.ENTRIES,
    **vit.ENTRIES,
}


def entry_of(name: str) -> Entry:
    """The registry's entry of a name; UserError with the nearest one if there is none."""
    if name not in MODELS:
        raise UserError(f"model.name: unknown model {name!r}.{nearest(name, MODELS)}")
    return MODELS[name]


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
    """Returns the module called `name`.

    Args:
      name: a key of `MODELS`.
      num_classes: rows of the head, at least 1.
      image_size: side of the input images in pixels; checked against the patch size.
      dtype: compute dtype, ``float32`` or ``bfloat16``; parameters are f32 either way.
      remat: recompute activations in the backward pass.
      dropout: rate in [0, 1).
      head: one of the entry's `heads`; empty takes the default.

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
        raise UserError(
            f"model {name} cuts images into patches of {entry.patch} pixels; the image size "
            f"{image_size} is not a multiple of it"
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
    """Returns ``{"params": …, "batch_stats": …}``, f32 leaves, `batch_stats` empty without BN.

    Works under `jax.eval_shape` for the abstract tree. The top-level keys of params are the
    stages; their forward order is `model.stages`, because jit hands dicts back sorted by key.
    `image_size` is the number of tokens for a model of texts.
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
    """What `initialise` draws from a seed, compiled; stages not in `stages` as shape structs.

    A loaded model needs random values for its new head alone, and the program that draws only those
    compiles in a fraction of the time. They are the same values.

    Args:
      model: staged module.
      image_size: side of the input images in pixels.
      seed: of the PRNG key.
      stages: whose values to draw; None draws all, () none.
    """
    wanted = frozenset(model.stages if stages is None else stages)
    key = jax.random.key(seed)
    drawn = _drawer(model, image_size, wanted)(key)
    return {c: {**abstract, **drawn[c]} for c, abstract in _shapes(model, image_size).items()}


@functools.cache
def _shapes(model: StagedModel, image_size: int) -> dict[str, Any]:
    """Of all variables; traced once for all runs of the same model."""
    return jax.eval_shape(lambda key: initialise(model, image_size, key), jax.random.key(0))


@functools.cache
def _drawer(model: StagedModel, image_size: int, stages: frozenset[str]) -> Any:
    """Compiled once for all runs of the same model."""

    def draw(key: jax.Array) -> dict[str, Any]:
        variables = initialise(model, image_size, key)
        return {c: {s: x for s, x in v.items() if s in stages} for c, v in variables.items()}

    return jax.jit(draw)

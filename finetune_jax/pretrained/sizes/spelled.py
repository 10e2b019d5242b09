"""The registry's name of a config's model, and the weights that are published for the model."""

from __future__ import annotations

import ml_collections

from finetune_jax.doors import is_door
from finetune_jax.errors import UserError
from finetune_jax.models import GENERIC, MODELS
from finetune_jax.models.spellings import Spelled, published_source, spelled, unknown
from finetune_jax.progress import say_once

PUBLISHED = "published"
"""Value of ``pretrained.path`` that stands for the weights that are published for the model."""


def settle_name(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the registry's name of its model, and with the source of published weights.

    A name that stands for one published set of weights, such as ``convnext_tiny.fb_in1k``, gives
    that set to ``pretrained.path="published"``.

    Raises:
      UserError: an unknown name, or a model without published weights.
    """
    name, path = config.model.name, config.pretrained.path
    base = name.partition("(")[0]
    known = base in MODELS or base in GENERIC or is_door(name)
    found = Spelled(name) if known else spelled(name)
    if found is None:
        raise UserError(f"model.name: unknown model {base!r}.{unknown(base)}.")
    if known and path != PUBLISHED:
        return config
    settled = config.copy_and_resolve_references()
    if not known:
        say_once(f"model.name={found.model}, for {name!r}")
        settled.model.name = found.model
    if path == PUBLISHED:
        settled.pretrained.path = found.weights or published_source(base if known else found.model)
        say_once(f"pretrained.path={settled.pretrained.path}, the published weights")
    elif found.weights and not path:
        say_once(
            f"warning: {name!r} is also a set of weights, and pretrained.path is empty: the model "
            f"starts from random values; pretrained.path='published' loads {found.weights}"
        )
    elif found.weights and path != found.weights:
        say_once(
            f"{name!r} is also the set of weights {found.weights}; loaded is pretrained.path={path}"
        )
    return settled

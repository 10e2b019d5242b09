"""Model registry: from names such as ``resnet20_cifar`` and ``vit_ti16`` to staged Flax modules."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_jax.models.building import (
        DTYPES,
        GENERIC,
        MODELS,
        MODULE_OF_FAMILY,
        build,
        entry_of,
        initial_variables,
        initialise,
    )
    from finetune_jax.models.registry import Entry, Inputs
    from finetune_jax.models.staged import EVAL, Mode, StagedModel

_HOMES = {
    "building": (
        "DTYPES", "GENERIC", "MODELS", "MODULE_OF_FAMILY", "build", "entry_of",
        "initial_variables", "initialise",
    ),
    "registry": ("Entry", "Inputs"),
    "staged": ("EVAL", "Mode", "StagedModel"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DTYPES", "EVAL", "GENERIC", "MODELS", "MODULE_OF_FAMILY", "Entry", "Inputs", "Mode",
    "StagedModel", "build", "entry_of", "initial_variables", "initialise",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # A module is imported when one of its names is first used: the import of JAX and Flax takes
    # seconds, and the list of all models, which needs neither, must not wait for them.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"finetune_jax.models.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

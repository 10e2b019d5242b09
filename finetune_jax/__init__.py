"""Fine-tune any pretrained model under any freezing scheme, and know afterwards what trained.

The Python API of `finetune_jax.api` is available here: ``import finetune_jax as fj; fj.fit(…)``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_jax.api import (
        Artifact,
        Plan,
        Setup,
        UserError,
        fit,
        load_config,
        load_weights,
        open_setup,
        plan_cost,
        plan_table,
        score,
    )

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Plan",
    "Setup",
    "UserError",
    "fit",
    "load_config",
    "load_weights",
    "open_setup",
    "plan_cost",
    "plan_table",
    "score",
]


def __getattr__(name: str) -> Any:
    # The API is imported when one of its names is first used: its import takes seconds, and the
    # --help of a command must not wait for them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("finetune_jax.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

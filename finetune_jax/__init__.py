"""Fine-tune any pretrained model under any freezing scheme, and know afterwards what trained.

The Python API of `finetune_jax.api` is available here: ``import finetune_jax as fj; fj.fit(…)``.
"""

from __future__ import annotations

import importlib
import os
import sys
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


_LIBRARIES = (
    "absl", "datasets", "flax", "h5py", "huggingface_hub", "jax", "matplotlib", "ml_collections",
    "numpy", "optax", "orbax", "PIL", "safetensors", "scipy", "sklearn", "tensorboardX",
    "tensorflow_datasets", "tokenizers", "tqdm",
)  # fmt: skip


def _refuse_hidden_modules() -> None:
    """Ends a command in a folder whose files Python would import in place of its own modules.

    With ``python -m``, files of the current folder go before Python's modules and libraries.
    """
    for name in sorted(os.listdir()):
        module = name.removesuffix(".py")
        is_module = module != name or os.path.isfile(os.path.join(name, "__init__.py"))
        if is_module and (module in sys.stdlib_module_names or module in _LIBRARIES):
            sys.exit(
                f"error: {name} in the current folder hides Python's module {module}, which is "
                f"needed here; rename it, or run the command in another folder"
            )


if sys.argv[:1] == ["-m"] and sys.path[:1] and sys.path[0] in ("", os.getcwd()):
    _refuse_hidden_modules()


def __getattr__(name: str) -> Any:
    # The API is imported when one of its names is first used: its import takes seconds, and the
    # --help of a command must not wait for them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("finetune_jax.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

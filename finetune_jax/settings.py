"""Settings of JAX in the environment that no command here can run under."""

from __future__ import annotations

import os
import sys

from finetune_jax.progress import say

# Name of the setting, its usual value, and why another one does not work.
_USUAL = (
    ("jax_disable_jit", False, "steps are compiled before they run"),
    ("jax_numpy_rank_promotion", "allow", "arrays of different ranks are broadcast"),
    ("jax_numpy_dtype_promotion", "standard", "numbers of different types are mixed"),
)


def without_strictness() -> None:
    """Sets what the environment makes stricter than JAX's defaults back, and says so.

    These settings find mistakes in code under development. They change no result.
    """
    for name, usual, why in _USUAL:
        variable = name.upper()
        given = os.environ.get(variable, "")
        if given.lower() in ("", "0", "f", "false", "n", "no", "off", str(usual).lower()):
            continue
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, usual)
        del os.environ[variable]  # of the processes that this one starts, too
        say(f"{variable}={given} has no effect here: {why}")

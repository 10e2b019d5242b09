"""What a program runs on, and accelerators that are there and are not used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

# What shows that a machine has an accelerator, and what to install for it.
_SIGNS = (
    ("an NVIDIA GPU", ("/dev/nvidia0", "nvidia-smi"), "pip install 'jax[cuda13]'"),
    ("a TPU", ("/dev/accel0",), "pip install 'jax[tpu]'"),
)


def device_words() -> str:
    """All devices in words, such as ``8 x TPU v4`` or ``1 x cpu``."""
    kinds = [device.device_kind for device in jax.devices()]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def unused_accelerators() -> Iterator[str]:
    """Yields a warning for each accelerator that is there while JAX computes on the CPU.

    Nothing is said where the user chose the CPU, with ``JAX_PLATFORMS`` or ``mesh.cpu_devices``.
    """
    # JAX declares its options at run time, so their types are unknown.
    chosen = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    if jax.default_backend() != "cpu" or "cpu" in chosen or _split_cpu():
        return
    for what, signs, install in _SIGNS:
        found = [sign for sign in signs if Path(sign).exists() or shutil.which(sign)]
        if found:
            yield (
                f"warning: this machine has {what} ({found[0]}), and JAX computes on the CPU: "
                f"{install} installs what JAX needs; JAX_PLATFORMS=cpu chooses the CPU"
            )


def _split_cpu() -> bool:
    """Whether ``mesh.cpu_devices`` has split the CPU."""
    return jax.config.jax_num_cpu_devices > 0  # type: ignore[attr-defined]  # declared at run time

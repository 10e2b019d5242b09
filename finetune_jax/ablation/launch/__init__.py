"""Launchers, by the name that ``--launcher`` gives."""

from __future__ import annotations

from typing import Any

from finetune_jax.ablation.launch.base import Launcher
from finetune_jax.errors import UserError, nearest

NAMES = ("local", "slurm", "ray")


def make_launcher(name: str, options: dict[str, Any]) -> Launcher:
    """The launcher ``local``, ``slurm`` or ``ray``.

    Args:
      name: name of the launcher.
      options: arguments of the launcher's class.

    Raises:
      UserError: unknown name or option, or the launcher's library is not installed.
    """
    if name not in NAMES:
        raise UserError(f"--launcher: unknown {name!r}.{nearest(name, NAMES)}")
    try:
        return _launcher_class(name)(**options)
    except TypeError as error:
        raise UserError(f"--launcher={name}: {error}") from None


def _launcher_class(name: str) -> type[Launcher]:
    if name == "local":
        from finetune_jax.ablation.launch.local import LocalLauncher

        return LocalLauncher
    if name == "slurm":
        from finetune_jax.ablation.launch.slurm import SlurmLauncher

        return SlurmLauncher
    from finetune_jax.ablation.launch.ray import RayLauncher

    return RayLauncher

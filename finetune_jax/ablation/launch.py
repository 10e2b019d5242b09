"""Where the units of an ablation run: in this process, in several, under SLURM, or under Ray.

A unit is a JSON file that names arms and what to do with them; `worker.run_unit` does it, and puts
what comes of each arm into the arm's own folder. So a launcher only has to get every unit run by
some process that sees the folder; who starts processes on other machines is SLURM's or Ray's
matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from finetune_jax.errors import UserError, nearest

Poll = Callable[[], None]
"""To be called whenever some arm may have ended, and at least every few seconds."""


class Launcher(Protocol):
    """A way to run units."""

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        """Runs every unit to its end.

        Args:
          units: files for `worker.run_unit`.
          poll: see `Poll`.

        Raises:
          UserError: a unit's process ended without finishing it, with the end of what it printed.
        """


def make_launcher(name: str, options: dict[str, Any]) -> Launcher:
    """The launcher ``local``, ``slurm`` or ``ray``.

    Args:
      name: of it.
      options: of its own: see its class.

    Raises:
      UserError: unknown name or option, or its library is not installed.
    """
    if name == "local":
        from finetune_jax.ablation.launch_local import LocalLauncher as kind
    elif name == "slurm":
        from finetune_jax.ablation.launch_slurm import SlurmLauncher as kind
    elif name == "ray":
        from finetune_jax.ablation.launch_ray import RayLauncher as kind
    else:
        raise UserError(f"--launcher: unknown {name!r}.{nearest(name, ('local', 'slurm', 'ray'))}")
    try:
        return kind(**options)
    except TypeError as error:
        raise UserError(f"--launcher={name}: {error}") from None

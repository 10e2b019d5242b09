"""What every launcher does: run the units of an ablation.

A unit is a JSON file that names arms and what to do with them. `worker.run_unit` runs a unit and
writes the result of each arm into the folder of that arm. A launcher therefore only has to run
every unit in some process that can read and write these folders. Processes on other machines are
started by SLURM or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

Poll = Callable[[], None]
"""Function to call whenever an arm may have ended, and at least every few seconds."""


class Launcher(Protocol):
    """A way to run units."""

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        """Runs every unit until all its arms have ended.

        Args:
          units: unit files for `worker.run_unit`.
          poll: see `Poll`.

        Raises:
          UserError: the process of a unit ended before all arms of the unit had ended. The message
            contains the last lines that the process printed.
        """

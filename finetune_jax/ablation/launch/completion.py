"""Whether a unit is finished after its process has ended, for launchers that start processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from finetune_jax.ablation.worker import finished
from finetune_jax.errors import UserError

# A network file system may show the files of another machine this much later, in seconds.
SHARED_FILES_DELAY = 60.0
# Number of failed units that an error message lists.
_UNITS_LISTED = 3
# Number of characters of a unit's output that an error message quotes.
_OUTPUT_LENGTH = 2000


class CompletionCheck:
    """Distinguishes finished units from units whose process ended early."""

    def __init__(self) -> None:
        self._ended_at: dict[Path, float] = {}

    def is_finished(self, unit: Path) -> bool | None:
        """Whether all arms of a unit have ended, for a unit whose process has ended.

        Returns:
          None if this is not known yet, because files of other machines may still appear.
        """
        if finished(unit):
            return True
        now = time.monotonic()
        waited = now - self._ended_at.setdefault(unit, now)
        return False if waited > SHARED_FILES_DELAY else None

    def restarted(self, unit: Path) -> None:
        """Records that the unit has a process again, for example after it was requeued."""
        self._ended_at.pop(unit, None)


def end_of_output(text: str) -> str:
    """The end of what a process printed, for an error message."""
    return text[-_OUTPUT_LENGTH:].strip() or "it printed nothing"


def raise_failed(failed: Mapping[Path, str]) -> None:
    """Raises an error about units that were not finished; does nothing if there are none.

    Args:
      failed: by unit, the reason with the end of the output.

    Raises:
      UserError: some units failed. Only the first few are listed, because many units usually fail
        for the same reason.
    """
    if not failed:
        return
    lines = [f"{unit.name} {reason}" for unit, reason in list(failed.items())[:_UNITS_LISTED]]
    if len(failed) > _UNITS_LISTED:
        lines.append(f"and {len(failed) - _UNITS_LISTED} more units")
    raise UserError("\n".join(lines))

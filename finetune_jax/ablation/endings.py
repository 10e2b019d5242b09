"""How the processes of units ended, for launchers whose processes run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from finetune_jax.ablation.worker import finished
from finetune_jax.errors import UserError

# A network file system may show what another machine wrote this much later, in seconds.
SHARED_FILES = 60.0
_SHOWN = 3
_TAIL = 2000


class Ends:
    """Tells units that are done from those whose process left them undone."""

    def __init__(self) -> None:
        self._since: dict[Path, float] = {}

    def is_done(self, unit: Path) -> bool | None:
        """For a unit whose process has ended: whether all its arms have; None is not known yet."""
        if finished(unit):
            return True
        waited = time.monotonic() - self._since.setdefault(unit, time.monotonic())
        return False if waited > SHARED_FILES else None

    def runs(self, unit: Path) -> None:
        """The unit has a process after all, such as one that was requeued."""
        self._since.pop(unit, None)


def tail(text: str) -> str:
    """The end of what a process printed."""
    return text[-_TAIL:].strip() or "it printed nothing"


def raise_failed(failed: Mapping[Path, str]) -> None:
    """Raises what is to say about units that were left undone, if there are any.

    Args:
      failed: reason, with the end of what was printed, by unit.

    Raises:
      UserError: there are some. Many fail for one reason, so only the first are told.
    """
    if not failed:
        return
    said = [f"{unit.name} {reason}" for unit, reason in list(failed.items())[:_SHOWN]]
    if len(failed) > _SHOWN:
        said.append(f"and {len(failed) - _SHOWN} more units")
    raise UserError("\n".join(said))

"""The message of a run that ends early: which checkpoint is complete, and how to continue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from finetune_jax.disk import disk_trouble
from finetune_jax.errors import Blocked, UserError
from finetune_jax.interruption import Interrupted


@contextlib.contextmanager
def explained(workdir: Path) -> Iterator[None]:
    """Adds the latest complete checkpoint to the message of a signal or of a full or broken disk.

    Raises:
      Blocked: the file system failed.
      Interrupted: a signal came at a time when nothing had to be saved.
    """
    try:
        yield
    except Interrupted as error:
        if error.saved:
            raise
        raise Interrupted(
            error.number, f"interrupted; {_safe(workdir)}; the same command continues"
        ) from None
    except UserError:
        raise
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        raise Blocked(
            f"--workdir={workdir}: {trouble}; {_safe(workdir)}; the same command continues when "
            f"that is mended"
        ) from error


def last_checkpoint(workdir: Path) -> int | None:
    """Step of the newest complete checkpoint of a run; None without a checkpoint."""
    try:
        names = [path.name for path in (workdir / "checkpoints").iterdir()]
    except OSError:
        return None
    return max((int(name) for name in names if name.isdecimal()), default=None)


def _safe(workdir: Path) -> str:
    step = last_checkpoint(workdir)
    if step is None:
        return "there is no checkpoint yet"
    return f"the last complete checkpoint is of step {step}"

"""Units on this machine: one after another in this process, or several processes at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from finetune_jax.ablation.endings import raise_failed, tail
from finetune_jax.ablation.launch import Poll
from finetune_jax.ablation.worker import run_unit
from finetune_jax.errors import UserError


class LocalLauncher:
    """See `launch.Launcher`.

    Args:
      processes: 1 runs units in this process; more run that many at a time, each in a process of
        its own, what it prints in ``UNIT.log`` beside the unit. One that fails leaves the others
        alone.

    Raises:
      UserError: `processes` is not a whole number from 1 on.
    """

    def __init__(self, processes: int = 1) -> None:
        if not isinstance(processes, int) or processes < 1:
            raise UserError(f"processes: expected a whole number >= 1, found {processes!r}")
        self._processes = processes

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        """See `launch.Launcher`."""
        if self._processes == 1:
            for unit in units:
                run_unit(unit, poll)
            return
        waiting, running = list(units), {}
        failed: dict[Path, str] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._processes:
                    unit = waiting.pop(0)
                    running[unit] = _start(unit)
                time.sleep(0.2)
                poll()
                for unit, process in list(running.items()):
                    if (status := process.poll()) is not None:
                        del running[unit]
                        if status:
                            failed[unit] = f"ended with status {status}: {tail(_printed(unit))}"
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        raise_failed(failed)


def _start(unit: Path) -> subprocess.Popen[bytes]:
    with unit.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_jax.ablation.worker", str(unit)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _printed(unit: Path) -> str:
    return unit.with_suffix(".log").read_text(errors="replace")

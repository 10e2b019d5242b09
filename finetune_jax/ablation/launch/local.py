"""Runs units on this machine: one after another in this process, or in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from finetune_jax.ablation.launch.base import Poll
from finetune_jax.ablation.launch.completion import end_of_output, raise_failed
from finetune_jax.ablation.worker import run_unit
from finetune_jax.errors import UserError


class LocalLauncher:
    """Launcher for this machine; see `launch.base.Launcher`.

    Args:
      processes: number of units that run at the same time. 1 runs the units in this process. With
        more, each unit has its own process, whose output is in ``UNIT.log`` beside the unit file.
        If a process fails, the other processes continue. Processes end with this process: their
        arms save checkpoints.

    Raises:
      UserError: `processes` is not a whole number >= 1.
    """

    def __init__(self, processes: int = 1) -> None:
        if not isinstance(processes, int) or processes < 1:
            raise UserError(f"processes: expected a whole number >= 1, found {processes!r}")
        self._processes = processes

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        """See `launch.base.Launcher`."""
        if self._processes == 1:
            for unit in units:
                run_unit(unit, poll)
            return
        waiting = list(units)
        running: dict[Path, subprocess.Popen[bytes]] = {}
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
                            output = end_of_output(_output(unit))
                            failed[unit] = f"ended with status {status}: {output}"
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        raise_failed(failed)


def _start(unit: Path) -> subprocess.Popen[bytes]:
    with unit.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_jax.ablation.worker", str(unit), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this process alone, which then sends each worker one signal: workers
            # take a second one as the wish to end without saving.
            start_new_session=True,
        )


def _output(unit: Path) -> str:
    return unit.with_suffix(".log").read_text(errors="replace")

"""Units under SLURM: one job array, submitted by submitit, an extra.

A unit whose job is preempted, loses its node or reaches its time limit is put back into the queue,
and then goes on from the checkpoints of its arms.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_jax.ablation.endings import Ends, raise_failed, tail
from finetune_jax.ablation.launch import Poll
from finetune_jax.ablation.worker import run_unit
from finetune_jax.errors import UserError

# Between two questions to the controller, in seconds: it serves a whole cluster.
_ASK_EVERY = 10.0
# What squeue calls a job that will not run again unless it is requeued.
_ENDED = frozenset(
    (
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    )
)


class SlurmLauncher:
    """See `launch.Launcher`.

    The folder of the ablation, this code and its Python must have the same paths on every node.
    Jobs get the environment and the working directory of this process; what they print is in
    ``slurm/`` beside the units. If this process ends early it cancels its jobs; those that a killed
    one left are cancelled by the next on the same folder, before it submits its own.

    Args:
      partition: of the jobs; empty takes the cluster's default.
      minutes: time limit of a job.
      cpus: of each unit; 0 takes the cluster's default.
      gpus: of each unit.
      array: units that run at the same time, at most.
      requeue: whether a unit goes on after preemption, loss of its node, or its time limit.
      timeouts: how often a unit may reach its time limit and go on.
      options: further options as on sbatch's command line: ``--account=lab --constraint=a100``.

    Raises:
      UserError: a value out of range, no submitit, or no SLURM on this machine.
    """

    def __init__(
        self,
        partition: str = "",
        minutes: int = 60,
        cpus: int = 0,
        gpus: int = 0,
        array: int = 100,
        requeue: bool | int | str = True,
        timeouts: int = 10,
        options: str = "",
    ) -> None:
        numbers = {"minutes": (minutes, 1), "cpus": (cpus, 0), "gpus": (gpus, 0),
                   "array": (array, 1), "timeouts": (timeouts, 0)}  # fmt: skip
        for name, (value, least) in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name}: expected a whole number >= {least}, found {value!r}")
        self._requeue = _truth("requeue", requeue)
        self._timeouts = timeouts if self._requeue else 0
        self._submitit = _library()
        if shutil.which("sbatch") is None:
            raise UserError(
                "--launcher=slurm: no sbatch here; run it where jobs are submitted from"
            )
        self._parameters: dict[str, Any] = {
            "time": minutes,
            "array_parallelism": array,
            # The signal before the time limit, in which a unit requeues itself.
            "signal_delay_s": min(90, 20 * minutes),
            "additional_parameters": {
                "requeue" if self._requeue else "no-requeue": True,
                **_sbatch_options(options),
            },
        }
        if partition:
            self._parameters["partition"] = partition
        if gpus:
            self._parameters["gpus_per_node"] = gpus
        if cpus:
            self._parameters["cpus_per_task"] = cpus
            # Since SLURM 22.05 srun does not take this from the job it is in.
            self._parameters["srun_args"] = [f"--cpus-per-task={cpus}"]

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        """See `launch.Launcher`."""
        if not units:
            return
        folder = units[0].absolute().parent
        name = _job_name(folder)
        _cancel(name)
        while any(state not in _ENDED for state in (_states(name) or {}).values()):
            time.sleep(1)
        try:
            jobs = self._submit(units, folder / "slurm", name)
            failed = _follow(jobs, name, poll)
        except BaseException:
            _cancel(name)
            raise
        raise_failed(failed)

    def _submit(self, units: Sequence[Path], folder: Path, name: str) -> dict[Path, Any]:
        """The submitit job of each unit."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.helpers import clean_env

        executor = self._submitit.SlurmExecutor(folder, max_num_timeout=self._timeouts)
        executor.update_parameters(job_name=name, **self._parameters)
        work = Resumable() if self._requeue else run_unit
        try:
            # This process may be a job itself, and its limits are not those of its jobs. Which
            # cluster this is, and what a person set for sbatch, are.
            kept = {
                key: value
                for key, value in os.environ.items()
                if key == "SLURM_CONF" or key.startswith("SBATCH_")
            }
            with clean_env():
                os.environ.update(kept)
                jobs = executor.map_array(work, [unit.absolute() for unit in units])
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"--launcher=slurm: sbatch refused: {error}") from None
        return dict(zip(units, jobs, strict=True))


class Resumable:
    """`run_unit` as submitit restarts it: anew, for what is done already is left as it is."""

    def __call__(self, unit: Path) -> None:
        """Runs a unit."""
        run_unit(unit)

    def checkpoint(self, unit: Path) -> Any:
        """Called by submitit before a job is requeued; returns what to run then."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, unit)


def _follow(jobs: dict[Path, Any], name: str, poll: Poll) -> dict[Path, str]:
    """Waits until all jobs have ended; returns why some left their unit undone."""
    waiting, failed = dict(jobs), {}
    ends, states, asked = Ends(), None, time.monotonic()
    while waiting:
        time.sleep(1)
        poll()
        if time.monotonic() - asked > _ASK_EVERY:
            states, asked = _states(name), time.monotonic()
        for unit, job in list(waiting.items()):
            state = "" if states is None else states.get(job.job_id, "gone")
            result = job.paths.result_pickle.exists()
            if not result and (states is None or state not in _ENDED | {"gone"}):
                ends.runs(unit)
                continue
            error = job.exception() if result else None
            done = False if error else ends.is_done(unit)
            if done is None:
                continue
            del waiting[unit]
            if not done:
                said = job.stderr() or str(error or job.stdout() or "")
                failed[unit] = f"(job {job.job_id}) {_why(state, error)}: {tail(said)}"
    return failed


def _why(state: str, error: Exception | None) -> str:
    if error:
        return "failed"
    return "ended without finishing" + (f", {state}" if state in _ENDED else "")


def _states(name: str) -> dict[str, str] | None:
    """State by id of the jobs of a name, as far as SLURM still knows them; None: no answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T",
               f"--user={getpass.getuser()}", f"--name={name}"]  # fmt: skip
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        return None
    return dict(line.split(maxsplit=1) for line in process.stdout.splitlines() if line.strip())


def _cancel(name: str) -> None:
    command = ["scancel", f"--user={getpass.getuser()}", f"--name={name}"]
    subprocess.run(command, capture_output=True)


def _job_name(folder: Path) -> str:
    """Of the jobs of a folder and of no other."""
    return f"ablation_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"


def _sbatch_options(text: str) -> dict[str, Any]:
    """Options by name, without their dashes; those without a value are True."""
    found: dict[str, Any] = {}
    for part in shlex.split(text):
        key, given, value = part.removeprefix("--").partition("=")
        if not part.startswith("--") or not key:
            raise UserError(f"options: expected --name=value or --name, found {part!r}")
        found[key] = value if given else True
    return found


def _truth(name: str, value: bool | int | str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if (text := str(value).lower()) not in known:
        raise UserError(f"{name}: expected true or false, found {value!r}")
    return known[text]


def _library() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--launcher=slurm needs the package submitit: pip install submitit"
        ) from None
    return submitit

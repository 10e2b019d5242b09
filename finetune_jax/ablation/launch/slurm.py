"""Runs units as one SLURM job array; needs the optional package submitit.

A unit whose job is preempted, loses its node or reaches its time limit is requeued, and then
continues from the checkpoints of its arms.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune_jax import interruption
from finetune_jax.ablation.launch.base import Poll
from finetune_jax.ablation.launch.completion import CompletionCheck, end_of_output, raise_failed
from finetune_jax.ablation.worker import run_unit
from finetune_jax.errors import UserError, lacks, require_library
from finetune_jax.interruption import Interrupted
from finetune_jax.progress import say

# Seconds between two calls of squeue: the SLURM controller serves the whole cluster.
_QUERY_INTERVAL = 10.0
# Longest time in seconds that a preempted job waits for its end.
_LONGEST_GRACE = 900.0
# States in squeue of a job that will not run again unless it is requeued.
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
    """Launcher for SLURM; see `launch.base.Launcher`.

    The folder of the ablation, the code and the Python interpreter must have the same paths on
    every node. Jobs get the environment and the working directory of this process; their output is
    in ``slurm/`` beside the unit files. If this process ends early, it cancels its jobs. Jobs left
    by a killed process are cancelled by the next launcher on the same folder, before that launcher
    submits jobs.

    Args:
      partition: partition of the jobs; if empty, the default partition of the cluster.
      minutes: time limit of a job, in minutes.
      cpus: number of CPUs of each unit; 0 takes the default of the cluster.
      gpus: number of GPUs of each unit.
      array: largest number of units that run at the same time.
      requeue: whether a unit continues after preemption, loss of its node, or its time limit.
      timeouts: how often a unit may reach its time limit and continue.
      options: further options in the form of sbatch's command line, such as
        ``--account=lab --constraint=a100``.

    Raises:
      UserError: a value is out of range, submitit is not installed, or this machine has no SLURM.
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
        self._requeue = _parse_bool("requeue", requeue)
        self._timeouts = timeouts if self._requeue else 0
        self._submitit = _import_submitit()
        if shutil.which("sbatch") is None:
            raise UserError(
                "--launcher=slurm: found no sbatch; run this on a machine that can submit jobs"
            )
        self._parameters: dict[str, Any] = {
            "time": minutes,
            "array_parallelism": array,
            # Seconds before the time limit at which SLURM signals a unit, which then requeues.
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
            # Since SLURM 22.05, srun does not inherit this value from its job.
            self._parameters["srun_args"] = [f"--cpus-per-task={cpus}"]

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        """See `launch.base.Launcher`."""
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
        work = Resumable(self._parameters["signal_delay_s"] // 2) if self._requeue else run_unit
        try:
            # This process may itself be a SLURM job, whose limits must not apply to the jobs that
            # it submits. The address of the cluster and the user's settings for sbatch do apply.
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
    """`run_unit` with the method that submitit calls before it requeues a job.

    The requeued job runs the same unit again; `run_unit` skips arms that have ended. The handlers
    of submitit requeue the job in the middle of a step. Here the arms finish the step and save
    checkpoints first.

    Args:
      seconds: time that the arms have for that, from the signal on; then the job is requeued at
        once.
    """

    def __init__(self, seconds: int = 45) -> None:
        self._seconds = seconds

    def __call__(self, unit: Path) -> None:
        """Runs a unit."""
        handlers: dict[int, Any] = {
            number: handler
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
            if callable(handler := signal.getsignal(number))
        }
        interruption.install([*handlers])
        for number in handlers.keys() - {signal.SIGTERM}:
            signal.signal(number, functools.partial(self._requeue_soon, handlers[number]))
        try:
            run_unit(unit)
        except Interrupted as error:
            signal.alarm(0)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            say(str(error))
            if error.number == signal.SIGTERM:
                # SLURM has cancelled the job, or preempts it after a time of grace and requeues
                # it. A job that ends during this time is not requeued.
                time.sleep(_LONGEST_GRACE)
            else:
                handlers[error.number](error.number, None)
            raise SystemExit(error.status) from None

    def _requeue_soon(self, requeue: Callable[[int, Any], None], number: int, frame: Any) -> None:
        signal.signal(signal.SIGALRM, lambda *_: requeue(number, frame))
        signal.alarm(self._seconds)
        interruption.note(number)

    def checkpoint(self, unit: Path) -> Any:
        """The call that the requeued job makes, as a ``DelayedSubmission`` of submitit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, unit)


def _follow(jobs: dict[Path, Any], name: str, poll: Poll) -> dict[Path, str]:
    """Waits until all jobs have ended; returns why some units were not finished."""
    waiting = dict(jobs)
    failed: dict[Path, str] = {}
    states: dict[str, str] | None = None
    completion, queried = CompletionCheck(), time.monotonic()
    while waiting:
        time.sleep(1)
        poll()
        if time.monotonic() - queried > _QUERY_INTERVAL:
            states, queried = _states(name), time.monotonic()
        for unit, job in list(waiting.items()):
            state = "" if states is None else states.get(job.job_id, "gone")
            has_result = job.paths.result_pickle.exists()
            if not has_result and (states is None or state not in _ENDED | {"gone"}):
                completion.restarted(unit)
                continue
            error = job.exception() if has_result else None
            finished = False if error else completion.is_finished(unit)
            if finished is None:
                continue
            del waiting[unit]
            if not finished:
                output = end_of_output(job.stderr() or str(error or job.stdout() or ""))
                failed[unit] = f"(job {job.job_id}) {_reason(state, error)}: {output}"
    return failed


def _reason(state: str, error: Exception | None) -> str:
    if error:
        return "failed"
    return "ended without finishing" + (f", {state}" if state in _ENDED else "")


def _states(name: str) -> dict[str, str] | None:
    """The state of each job with a name, by job id; None if squeue fails.

    SLURM forgets jobs some time after they have ended.
    """
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
    """A job name that only the jobs of this folder have."""
    return f"ablation_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"


def _sbatch_options(text: str) -> dict[str, Any]:
    """Options by name without leading dashes; the value of an option without a value is True."""
    options: dict[str, Any] = {}
    for part in shlex.split(text):
        key, given, value = part.removeprefix("--").partition("=")
        if not part.startswith("--") or not key:
            raise UserError(f"options: expected --name=value or --name, found {part!r}")
        options[key] = value if given else True
    return options


def _parse_bool(name: str, value: bool | int | str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if (text := str(value).lower()) not in known:
        raise UserError(f"{name}: expected true or false, found {value!r}")
    return known[text]


def _import_submitit() -> Any:
    try:
        import submitit

        require_library(submitit)
    except ImportError:
        raise lacks("--launcher=slurm", "the library submitit", "slurm") from None
    return submitit

"""Runs units as jobs of a Ray cluster, or of a Ray instance on this machine; Ray is optional.

Moritz et al. 2018, arXiv 1712.05889. Each unit is a separate process started by Ray's job
submission; the training code does not depend on Ray.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune_jax.ablation.launch.base import Poll
from finetune_jax.ablation.launch.completion import CompletionCheck, end_of_output, raise_failed
from finetune_jax.errors import UserError, lacks

# Ray gives up a job that has been pending for 15 minutes, so only a few jobs are pending in Ray at
# a time; the other units wait in this process.
_MAX_PENDING = 4
# Key of a job's metadata that holds the folder of its unit.
_FOLDER_KEY = "finetune_jax_units"


class RayLauncher:
    """Launcher for Ray; see `launch.base.Launcher`.

    The folder of the ablation, the code and the Python interpreter must have the same paths on
    every node. Jobs run in the working directory of this process and get their environment from the
    cluster. The output of a job is in ``UNIT.log`` beside the unit file. If this process ends
    early, it stops its jobs. Jobs left by a killed process are stopped by the next launcher on the
    same folder, before that launcher submits jobs.

    Args:
      address: address of the cluster, such as ``http://head:8265``; if empty, a Ray instance is
        started on this machine and stopped at the end.
      cpus: number of CPUs reserved for each unit.
      gpus: number of GPUs reserved for each unit.
      retries: how often a unit starts again after a failure of Ray, such as a lost node. A unit
        whose own process failed does not start again.

    Raises:
      UserError: a value is out of range, or Ray is not installed.
    """

    def __init__(self, address: str = "", cpus: int = 1, gpus: int = 0, retries: int = 3) -> None:
        for name, value, least in (("cpus", cpus, 1), ("gpus", gpus, 0), ("retries", retries, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name}: expected a whole number >= {least}, found {value!r}")
        self._address, self._cpus, self._gpus, self._retries = address, cpus, gpus, retries
        _require_ray()

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        """See `launch.base.Launcher`."""
        if not units:
            return
        folder = str(units[0].absolute().parent.resolve())
        with _cluster(self._address) as client:
            _stop_all(client, folder)
            try:
                failed = self._follow(client, units, folder, poll)
            except BaseException:
                _stop_all(client, folder)
                raise
        raise_failed(failed)

    def _follow(
        self, client: Any, units: Sequence[Path], folder: str, poll: Poll
    ) -> dict[Path, str]:
        """Submits all units and waits for them; returns why some units were not finished."""
        waiting = list(units)
        jobs: dict[Path, str] = {}
        failed: dict[Path, str] = {}
        completion, losses = CompletionCheck(), Counter[Path]()
        while waiting or jobs:
            infos = {unit: client.get_job_info(job) for unit, job in jobs.items()}
            places = _MAX_PENDING - sum(info.status == "PENDING" for info in infos.values())
            while waiting and places > 0:
                unit = waiting.pop(0)
                jobs[unit] = self._submit(client, unit, folder)
                places -= 1
            time.sleep(1)
            poll()
            for unit, info in infos.items():
                if not info.status.is_terminal():
                    continue
                succeeded = info.status == "SUCCEEDED"
                process_ended = succeeded or info.driver_exit_code is not None
                process_failed = process_ended and not succeeded
                finished = False if process_failed else completion.is_finished(unit)
                if finished is None and process_ended:
                    continue
                output = client.get_job_logs(jobs.pop(unit)) or ""
                unit.with_suffix(".log").write_text(output)
                if finished:
                    continue
                lost = info.status == "FAILED" and not process_ended
                if lost and losses[unit] < self._retries:
                    # A job that found no resources while our other jobs held them was not lost: it
                    # only has to wait longer.
                    losses[unit] += not (_found_no_resources(info) and jobs)
                    waiting.append(unit)
                    completion.restarted(unit)
                    continue
                reason = f"status {info.driver_exit_code}" if process_ended else info.message or ""
                failed[unit] = (
                    f"{info.status.value.lower()} ({reason[:200]}): {end_of_output(output)}"
                )
        return failed

    def _submit(self, client: Any, unit: Path, folder: str) -> str:
        command = shlex.join(
            [sys.executable, "-m", "finetune_jax.ablation.worker", str(unit.absolute())]
        )
        return client.submit_job(
            # exec, so that a signal to the job reaches the worker.
            entrypoint=f"cd {shlex.quote(os.getcwd())} && exec {command}",
            metadata={_FOLDER_KEY: folder},
            entrypoint_num_cpus=self._cpus,
            entrypoint_num_gpus=self._gpus or None,
        )


def _found_no_resources(info: Any) -> bool:
    return info.error_type == "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"


def _stop_all(client: Any, folder: str) -> None:
    """Stops the jobs of a folder and waits until they have ended."""

    def running() -> list[str]:
        return [
            job.submission_id
            for job in client.list_jobs()
            if (job.metadata or {}).get(_FOLDER_KEY) == folder and not job.status.is_terminal()
        ]

    for job in running():
        client.stop_job(job)
    while running():
        time.sleep(0.5)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """A job client of the cluster at an address, or of a Ray instance that ends with this context.

    Args:
      address: see `RayLauncher`.

    Raises:
      UserError: no cluster answers at the address.
    """
    from ray.job_submission import JobSubmissionClient

    if address:
        with _without_address_variables():
            try:
                client = JobSubmissionClient(address)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"address: no Ray cluster at {address!r}: {error}") from None
        yield client
        return
    import ray

    # A Ray instance started here sends no usage statistics, unless the user has asked for them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _without_address_variables():
        context = ray.init(address="local", include_dashboard=True, log_to_driver=False)
    try:
        with _without_address_variables():
            client = JobSubmissionClient(f"http://{context.dashboard_url}")
        yield client
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without_address_variables() -> Iterator[None]:
    """Hides environment variables with which Ray overrides an explicit address."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _require_ray() -> None:
    try:
        import aiohttp  # noqa: F401  # part of ray[default], needed to submit jobs
        import ray.job_submission  # noqa: F401
    except ImportError:
        raise lacks("--launcher=ray", "Ray with its job server", "ray") from None

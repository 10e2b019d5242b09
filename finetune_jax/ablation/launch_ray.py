"""Units as jobs of a Ray cluster, or of a Ray started here; an extra.

Moritz et al. 2018, arXiv 1712.05889. A unit is a process of its own, as Ray's job submission starts
them: nothing of what trains knows of Ray.
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

from finetune_jax.ablation.endings import Ends, raise_failed, tail
from finetune_jax.ablation.launch import Poll
from finetune_jax.errors import UserError

# Ray gives up on a job that has waited 15 minutes for a place, so only a few are to wait there; the
# others wait here.
_WAITING_THERE = 4
_FOLDER = "finetune_jax_units"


class RayLauncher:
    """See `launch.Launcher`.

    The folder of the ablation, this code and its Python must have the same paths on every node.
    Jobs work in the directory of this process and get their environment from the cluster. What they
    print is in ``UNIT.log`` beside the unit. If this process ends early it stops its jobs; those
    that a killed one left are stopped by the next on the same folder, before it submits its own.

    Args:
      address: of the cluster, such as ``http://head:8265``; empty starts a Ray on this machine and
        stops it in the end.
      cpus: reserved for each unit.
      gpus: likewise.
      retries: how often a unit whose node was lost, say, starts again; a unit whose own process
        failed does not.

    Raises:
      UserError: a value out of range, or no Ray.
    """

    def __init__(self, address: str = "", cpus: int = 1, gpus: int = 0, retries: int = 3) -> None:
        for name, value, least in (("cpus", cpus, 1), ("gpus", gpus, 0), ("retries", retries, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name}: expected a whole number >= {least}, found {value!r}")
        self._address, self._cpus, self._gpus, self._retries = address, cpus, gpus, retries
        _library()

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        """See `launch.Launcher`."""
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
        """Submits all units and waits for them; returns why some were left undone."""
        waiting, jobs = list(units), {}
        failed: dict[Path, str] = {}
        ends, lost = Ends(), Counter[Path]()
        while waiting or jobs:
            infos = {unit: client.get_job_info(job) for unit, job in jobs.items()}
            places = _WAITING_THERE - sum(x.status == "PENDING" for x in infos.values())
            while waiting and places > 0:
                unit = waiting.pop(0)
                jobs[unit] = self._submit(client, unit, folder)
                places -= 1
            time.sleep(1)
            poll()
            for unit, info in infos.items():
                if not info.status.is_terminal():
                    continue
                own = info.status == "SUCCEEDED" or info.driver_exit_code is not None
                done = False if own and info.status != "SUCCEEDED" else ends.is_done(unit)
                if done is None and own:
                    continue
                printed = client.get_job_logs(jobs.pop(unit)) or ""
                unit.with_suffix(".log").write_text(printed)
                if done:
                    continue
                if info.status == "FAILED" and not own and lost[unit] < self._retries:
                    # One that found no place while others of ours held it only waits longer.
                    lost[unit] += not (_found_no_place(info) and jobs)
                    waiting.append(unit)
                    ends.runs(unit)
                    continue
                reason = info.message or "" if not own else f"status {info.driver_exit_code}"
                failed[unit] = f"{info.status.value.lower()} ({reason[:200]}): {tail(printed)}"
        return failed

    def _submit(self, client: Any, unit: Path, folder: str) -> str:
        command = shlex.join(
            [sys.executable, "-m", "finetune_jax.ablation.worker", str(unit.absolute())]
        )
        return client.submit_job(
            # exec: so that a signal to the job reaches the worker.
            entrypoint=f"cd {shlex.quote(os.getcwd())} && exec {command}",
            metadata={_FOLDER: folder},
            entrypoint_num_cpus=self._cpus,
            entrypoint_num_gpus=self._gpus or None,
        )


def _found_no_place(info: Any) -> bool:
    return info.error_type == "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"


def _stop_all(client: Any, folder: str) -> None:
    """Stops the jobs of a folder and waits for their ends."""

    def running() -> list[str]:
        return [
            job.submission_id
            for job in client.list_jobs()
            if (job.metadata or {}).get(_FOLDER) == folder and not job.status.is_terminal()
        ]

    for job in running():
        client.stop_job(job)
    while running():
        time.sleep(0.5)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """A client for jobs of a cluster, or of one that lives as long as this context."""
    from ray.job_submission import JobSubmissionClient

    if address:
        with _without_defaults():
            try:
                client = JobSubmissionClient(address)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"address: no Ray cluster at {address!r}: {error}") from None
        yield client
        return
    import ray

    # The one started here is for nobody else to see.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _without_defaults():
        context = ray.init(address="local", include_dashboard=True, log_to_driver=False)
    try:
        with _without_defaults():
            client = JobSubmissionClient(f"http://{context.dashboard_url}")
        yield client
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without_defaults() -> Iterator[None]:
    """Ray lets these override an address that is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _library() -> None:
    try:
        import aiohttp  # noqa: F401  # of ray[default], without which jobs cannot be submitted
        import ray.job_submission  # noqa: F401
    except ImportError:
        raise UserError(
            "--launcher=ray needs Ray with its job server: pip install 'ray[default]'"
        ) from None

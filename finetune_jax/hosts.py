"""Several processes, such as the hosts of a pod, that run one program together.

Each process computes the rows of a batch that are on the devices of the process. If a split is
larger than ``data.cache_bytes``, each process decodes these rows only. Process 0, the primary, is
the only process that prints and writes files; checkpoints are written by all processes.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np

from finetune_jax.ending import ending
from finetune_jax.errors import UserError
from finetune_jax.gloo_lines import drop_gloo_lines
from finetune_jax.interruption import Interrupted, leave
from finetune_jax.mesh import let_cpu_devices_wait
from finetune_jax.peers import Peers, meet
from finetune_jax.progress import muted, say

T = TypeVar("T")

# Time that a process which fails waits for the other processes, which may wait for this process.
# Processes that end without an error pass a barrier before they exit.
_SECONDS_TO_LEAVE = 10
_PRIMARY_LINGERS = 4.0
# In errors of libraries about an exchange with another process.
_EXCHANGE = re.compile(
    "gloo|nccl|connection (closed|reset|refused)|heartbeat|coordination|UNAVAILABLE|peer", re.I
)
_peers: Peers | None = None


def connect(how: str, seconds: float = 120.0) -> None:
    """Connects this process with the other processes of the job.

    This function must be called before the first use of a device. A job has one process for each
    TPU host, or one process for each GPU under SLURM or Open MPI.

    Args:
      how: ``auto`` reads the job from the environment of TPU, SLURM, Open MPI or Kubernetes.
        ``HOST:PORT,COUNT,NUMBER`` gives the address of process 0, the number of processes, and the
        number of this process, counted from 0; this process then uses all devices of its machine.
        An empty text is for a single process.
      seconds: longest time to wait for the other processes.

    Raises:
      UserError: `how` has another form, no job was found, or the other processes cannot be reached;
        the message names the missing ones where they are known.
    """
    global _peers  # noqa: PLW0603  as `jax.distributed`, of which a process has one
    if not how:
        return
    options = _detect(seconds) if how == "auto" else _parse(how)
    host, _, port = options["coordinator_address"].rpartition(":")
    _peers = meet(
        host.strip("[]"), int(port), options["num_processes"], options["process_id"], seconds
    )
    drop_gloo_lines()
    let_cpu_devices_wait()
    # The service would take SIGTERM away from the handler of this package.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            initialization_timeout=math.ceil(seconds),
            shutdown_timeout_seconds=_SECONDS_TO_LEAVE,
            **options,
        )
        # Only the first call has an effect. Processes that end without an error announce it first.
        atexit.register(_leave_peers, failed=True)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "DEADLINE_EXCEEDED" in reason or "timed out" in reason.lower():
            reason = f"the other processes did not come within {seconds:g} s ({reason})"
        raise UserError(f"--distributed={how}: {reason}") from None


def _detect(seconds: float) -> dict[str, Any]:
    """The job that JAX finds in the environment; JAX offers no public function for it."""
    import warnings

    from jax._src.clusters import ClusterEnv

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            address, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, math.ceil(seconds)
            )
        except Exception as error:  # noqa: BLE001  each kind of cluster has its own errors
            raise UserError(f"--distributed=auto: {error}") from None
    if address is None or count is None or number is None:
        reason = "found no job of a TPU pod, SLURM, Open MPI or Kubernetes"
        if any("jax[k8s]" in str(warning.message) for warning in caught):
            reason = (
                "this is a Kubernetes pod, and the package that reads its job is not installed "
                "(pip install 'jax[k8s]')"
            )
        raise UserError(f"--distributed=auto: {reason}; otherwise give HOST:PORT,COUNT,NUMBER")
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": number,
        "local_device_ids": devices,
        "cluster_detection_method": "deactivate",
    }


def _parse(how: str) -> dict[str, Any]:
    address, *numbers = how.split(",")
    host, colon, port = address.rpartition(":")
    right = len(numbers) == 2 and all(n.strip().isdigit() for n in (port, *numbers))
    if not (right and host and colon and int(numbers[1]) < int(numbers[0])):
        raise UserError(
            f"--distributed: expected 'auto' or HOST:PORT,COUNT,NUMBER with NUMBER below COUNT, "
            f"such as 10.0.0.1:1234,2,0; found {how!r}"
        )
    return {
        "coordinator_address": address,
        "num_processes": int(numbers[0]),
        "process_id": int(numbers[1]),
        # Otherwise JAX uses one GPU only, if the environment has variables of a cluster.
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def primary_only() -> Iterator[None]:
    """In this context only the primary prints; all processes leave the context together.

    If one of several processes fails, the process prints the error and exits immediately. If the
    process waited for a file that all processes write together, while the other processes wait for
    this process, no process would end.
    """
    count = jax.process_count()
    if count == 1:
        yield
        return
    if is_primary():
        say(f"{count} processes with {jax.device_count()} devices")
    try:
        with contextlib.ExitStack() as silence:
            if not is_primary():
                silence.enter_context(muted())
                silence.enter_context(contextlib.redirect_stdout(None))
            yield
    except BaseException as error:  # noqa: BLE001  no error may keep the process waiting
        if isinstance(error, Interrupted) and error.saved:
            _leave_together(error)
        text, status = ending(error) or _lost(error) or (traceback.format_exc().rstrip(), 1)
        print(text, file=sys.stderr, flush=True)
        _leave_peers(failed=True)
        if is_primary():  # the others end at once when the service of JAX in this process ends
            time.sleep(_PRIMARY_LINGERS)
        leave(status)
    wait("end")
    _leave_peers(failed=False)


def _leave_together(error: Interrupted) -> NoReturn:
    """Ends this process for a signal, after which all processes stop at the same step."""
    if is_primary():
        text, _ = ending(error) or (str(error), 0)
        print(text, file=sys.stderr)
    wait("interrupted")
    _leave_peers(failed=False)
    if is_primary():  # the others would otherwise take the end of this process for an error
        time.sleep(_PRIMARY_LINGERS)
    leave(error.status)


def _lost(error: BaseException) -> tuple[str, int] | None:
    """Message and status for an error of an exchange with a process that has ended."""
    if _peers:
        return (text, 1) if (text := _peers.lost()) else None
    if not _EXCHANGE.search(str(error)):
        return None
    reason = str(error).splitlines()[0]
    return f"error: another process of this run has ended or cannot be reached: {reason}", 1


def _leave_peers(*, failed: bool) -> None:
    if _peers:
        _peers.leave(jax.process_index(), failed=failed)


def is_primary() -> bool:
    """Returns whether this process is process 0, which prints and writes files."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Waits until all processes have called this function with the same text."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)


def primary_first(make: Callable[[], T]) -> T:
    """Calls `make` on the primary, then on all other processes, and returns the result.

    The order matters if `make` writes files, such as a download, that the other processes then
    find.
    """
    if jax.process_count() == 1:
        return make()
    if is_primary():
        made = make()
        wait("primary first")
        return made
    wait("primary first")
    return make()


def all_agree(found: bool) -> bool:
    """Returns whether `found` is true on every process."""
    if jax.process_count() == 1:
        return found
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.all(process_allgather(np.array(found))))


def largest(value: int) -> int:
    """Returns the largest of the numbers that the processes pass, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import process_allgather

    return int(np.max(process_allgather(np.array(value))))


def on_primary(make: Callable[[], T]) -> T | None:
    """Calls `make` on the primary; returns None on the other processes.

    Raises:
      UserError: on all processes, if `make` raises it.
    """
    made, refused = None, None
    if is_primary():
        try:
            made = make()
        except UserError as error:
            refused = error
    if largest(refused is not None):
        raise refused or UserError("process 0 refused to go on; see what it printed")
    return made


def require_same(what: dict[str, Any]) -> None:
    """Checks that all processes have the same values.

    Args:
      what: values by name; two values are the same if their `repr` is.

    Raises:
      UserError: on all processes, if a value differs between two processes.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental.multihost_utils import process_allgather

    digests = [hashlib.sha256(repr(value).encode()).digest() for value in what.values()]
    own = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
    everywhere = process_allgather(own)
    differ = [name for name, rows in zip(what, everywhere.swapaxes(0, 1), strict=True)
              if (rows != rows[0]).any()]  # fmt: skip
    if differ:
        raise UserError(
            f"the {jax.process_count()} processes do not have the same {', '.join(differ)}; is "
            f"--workdir shared, and do all read the same files?"
        )


def broadcast_from_primary(values: Any) -> Any:
    """Returns, on every process, the tree of arrays that the primary has."""
    if jax.process_count() == 1:
        return values
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return broadcast_one_to_all(values)

"""Several processes, such as the hosts of a pod, that run one program together.

Each computes the rows of a batch that lie on its own devices, and decodes only these where a split
does not fit ``data.cache_bytes``. The first process leads: it alone writes files and prints, but
for checkpoints, which all of them write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.mesh import let_cpu_devices_wait
from finetune_jax.progress import muted, say

T = TypeVar("T")

# What a process that fails waits for the others, which may be waiting for it. Those that end well
# meet before they leave.
_SECONDS_TO_LEAVE = 10


def connect(how: str) -> None:
    """Connects this process with the others of its job, before the first use of a device.

    One process is meant for each TPU host, and for each GPU under SLURM or Open MPI.

    Args:
      how: ``auto``, by what TPU, SLURM, Open MPI or Kubernetes say of the job, or
        ``HOST:PORT,COUNT,NUMBER``: address of the first process, how many there are, and which
        this one is, from 0, with all devices of its machine. Empty for a process by itself.

    Raises:
      UserError: written otherwise, no such job, or the others cannot be reached.
    """
    if not how:
        return
    options = {} if how == "auto" else _parse(how)
    let_cpu_devices_wait()
    try:
        jax.distributed.initialize(shutdown_timeout_seconds=_SECONDS_TO_LEAVE, **options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if how == "auto" and reason.endswith("defined."):
            reason = (
                "found no job of a TPU pod, SLURM, Open MPI or Kubernetes; expected "
                "HOST:PORT,COUNT,NUMBER"
            )
        raise UserError(f"--distributed={how}: {reason}") from None


def _parse(how: str) -> dict[str, object]:
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
        # Else JAX takes one GPU where it happens to see a cluster's variables.
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def primary_only() -> Iterator[None]:
    """Within it only the leader prints; it is left by all processes together.

    One of several that fails says why and is gone at once: were it to wait for what it still writes
    with the others, who wait for it, nobody would ever end.
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
    except BaseException as error:  # noqa: BLE001  whatever it is
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 1)
    wait("end")


def is_primary() -> bool:
    """Whether this process writes the files; the only one does."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)


def primary_first(make: Callable[[], T]) -> T:
    """What `make` returns: it runs on the leader, then on all others.

    For what leaves files behind, such as a download, that the others then find.
    """
    if jax.process_count() == 1:
        return make()
    if is_primary():
        made = make()
        wait("leader")
        return made
    wait("leader")
    return make()


def all_agree(found: bool) -> bool:
    """Whether it is so for every process."""
    if jax.process_count() == 1:
        return found
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.all(process_allgather(np.array(found))))


def require_same(what: dict[str, Any]) -> None:
    """Raises UserError, on all processes, where one of these values differs between them.

    Args:
      what: values with a `repr`, by what they are.
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
    """A tree of arrays as the leader has it, on every process."""
    if jax.process_count() == 1:
        return values
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return broadcast_one_to_all(values)

"""Several processes, such as the hosts of a pod, that run one program together.

Each reads the rows of a batch that its own devices need. The first one leads: it alone writes the
run's files and prints; checkpoints are written by all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.reporting.progress import muted
from finetune_jax.training.mesh import let_cpu_devices_wait


def connect(how: str) -> None:
    """Connects this process with the others of its job, before the first use of a device.

    Args:
      how: ``auto``, by what TPU, SLURM, Open MPI or Kubernetes say of the job, or
        ``HOST:PORT,COUNT,NUMBER``: address of the first process, how many there are, and which
        this one is, from 0. Empty for a process by itself.

    Raises:
      UserError: written otherwise, or the others cannot be reached.
    """
    if not how:
        return
    options = {} if how == "auto" else _parse(how)
    let_cpu_devices_wait()
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--distributed={how}: {str(error).splitlines()[0]}") from None


@contextlib.contextmanager
def led() -> Iterator[None]:
    """Within it only the leader prints; it is left by all processes together."""
    with contextlib.nullcontext() if leads() else muted():
        yield
    wait("end")


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
    }


def leads() -> bool:
    """Whether this process writes the files; the only one does."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)


def all_agree(found: bool) -> bool:
    """Whether it is so for every process."""
    if jax.process_count() == 1:
        return found
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.all(process_allgather(np.array(found))))

"""The mesh of devices, with a ``data`` and an ``fsdp`` axis, and the sharding of each array."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from finetune_jax.errors import UserError

_POOL_THREADS = 64

# A smaller leaf is replicated: a copy on every device costs less than gathering the leaf.
_MIN_SHARDED_SIZE = 2**16


def use_cpu_devices(count: int) -> None:
    """Splits the CPU into `count` devices; 0 keeps JAX's default.

    This function must be called before the first use of a device. Two devices on two cores ran the
    ResNet-20 train step about twice as fast as one device with two threads, because XLA's CPU code
    for weight gradients of convolutions hardly uses a second thread.

    Raises:
      UserError: JAX already runs with another number of devices in this process.
    """
    # JAX declares its options at run time, so their types are unknown.
    if count and jax.config.jax_num_cpu_devices != count:  # type: ignore[attr-defined]
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:
            raise UserError(
                f"mesh.cpu_devices: JAX already runs with {jax.device_count()} devices in this "
                f"process; start another process for {count}"
            ) from None
        let_cpu_devices_wait()


def let_cpu_devices_wait() -> None:
    """Prevents a deadlock of CPU devices that share one thread pool.

    In a collective, each CPU device waits in a thread of the pool. If the pool has only as many
    threads as there are cores, collectives of one device can take all threads, and the other device
    never reaches the collective. So the pool gets more threads (XLA reads ``NPROC``), and
    asynchronous dispatch is off: one program ends before the next program starts.
    """
    os.environ.setdefault("NPROC", str(_POOL_THREADS))
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def make_mesh(data: int, fsdp: int) -> Mesh:
    """Returns a mesh over all devices.

    Args:
      data: size of the ``data`` axis; -1 for the number of devices divided by `fsdp`.
      fsdp: size of the ``fsdp`` axis; -1 for the number of devices divided by `data`.

    Raises:
      UserError: the product of the two sizes is not the number of devices.
    """
    count = jax.device_count()
    if data == -1 and fsdp >= 1:
        data = count // fsdp
    elif fsdp == -1 and data >= 1:
        fsdp = count // data
    if data * fsdp != count or data < 1:
        raise UserError(
            f"mesh.data x mesh.fsdp must be the number of devices, {count}; found {data} x {fsdp}"
        )
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=auto)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Returns a tree of shardings with the structure of `state` (arrays or shape structs).

    A large leaf is split over ``fsdp`` along the longest axis whose size is a multiple of the size
    of ``fsdp``. All other leaves are replicated.
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        if parts > 1 and np.prod(leaf.shape) >= _MIN_SHARDED_SIZE:
            for axis in sorted(range(len(spec)), key=lambda a: -leaf.shape[a]):
                if leaf.shape[axis] % parts == 0:
                    spec[axis] = "fsdp"
                    break
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, state)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the ascending row numbers, i64, of a global batch on the devices of this process."""
    spans = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[span] for span in spans]))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts the rows of a global batch that this process has on the devices of this process.

    Args:
      batch: arrays whose leading axis has the rows `local_rows` of the global batch.
      mesh: all devices; the size of the global batch is a multiple of their number.

    Returns:
      The global arrays.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)  # the same arrays with less work for the host
    return jax.make_array_from_process_local_data(sharding, batch)


def put_leaf(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts a leaf that every process has on the mesh, with the sharding of `state_sharding`."""
    sharding = state_sharding(mesh, array)
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    # `jax.device_put` would send the leaf to the other processes to compare the values.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

"""Devices as a mesh with a ``data`` and an ``fsdp`` axis, and where each array lives on it."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from finetune_jax.errors import UserError

_POOL_THREADS = 64

# Smaller leaves are cheaper to keep on every device than to gather.
_MIN_SHARDED_SIZE = 2**16


def use_cpu_devices(count: int) -> None:
    """Splits the CPU into `count` devices; 0 leaves JAX's default.

    Two devices on two cores ran the ResNet-20 train step about twice as fast as one device with two
    threads: XLA's CPU weight gradients of convolutions hardly spread over threads. Must come before
    the first use of a device.
    """
    if count and jax.config.jax_num_cpu_devices != count:
        jax.config.update("jax_num_cpu_devices", count)
        let_cpu_devices_wait()


def let_cpu_devices_wait() -> None:
    """Keeps CPU devices that wait for each other from waiting for ever.

    Devices that are threads of one CPU wait in collectives, each in a thread of a common pool: with
    as few threads as cores, gradients of one device that are ready early can take all of them, and
    the other device never gets to its own. So there are more (XLA reads NPROC), and a call returns
    when it is done, before another program starts.
    """
    os.environ.setdefault("NPROC", str(_POOL_THREADS))
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def make_mesh(data: int, fsdp: int) -> Mesh:
    """Returns a mesh over all devices; an axis of -1 takes what the other leaves.

    Raises:
      UserError: the axes do not multiply to the number of devices.
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
    """Leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Shardings in the structure of `state` (arrays or shape structs).

    A large leaf is cut over ``fsdp`` along its longest axis that divides; all others are whole on
    every device.
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
    """Rows i64 of a global batch that lie on this process' devices, rising."""
    spans = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[span] for span in spans]))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places this process' rows of a global batch; leading axes must divide over the devices."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def put_leaf(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Places a leaf that every process has, as `state_sharding` says."""
    sharding = state_sharding(mesh, array)
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    # `jax.device_put` would send the leaf around to compare it.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

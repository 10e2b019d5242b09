"""Ordered results of worker processes, by the library grain."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

from finetune_jax.errors import UserError
from finetune_jax.interruption import end_with_parent


def ordered(function: Callable[[int], Any], start: int, stop: int, workers: int) -> Iterator[Any]:
    """Yields function(start), …, function(stop - 1), computed ahead by processes.

    Process w of n computes every n-th result from the w-th on, so the order does not depend on the
    number of processes. A process starts without the state of this process, imports the modules
    that `function` needs, and sees no accelerator.

    Args:
      function: picklable function of a number.
      start: first number.
      stop: number after the last one.
      workers: number of processes, at least 1.

    Raises:
      Exception: the error that `function` raised, in place of its result.
    """
    try:
        import grain
    except ImportError:
        raise UserError("data.workers: worker processes need grain: pip install grain") from None
    from absl import flags

    if start == stop:
        return
    # grain reads absl flags, which are not parsed outside of a command.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    numbers = grain.MapDataset.range(start, stop).map(function)
    read = numbers.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    # Results go through pipes: the shared memory of a container is often 64 MB, which two batches
    # of photographs fill.
    options = grain.experimental.DatasetOptions(min_shm_size=2**62)
    dataset = grain.experimental.WithOptionsIterDataset(read, options).mp_prefetch(
        grain.MultiprocessingOptions(
            num_workers=min(workers, stop - start), per_worker_buffer_size=2
        ),
        worker_init_fn=functools.partial(_start_worker, os.getpid()),
    )
    iterator = iter(dataset)
    try:
        # A process inherits that SIGINT is blocked: Ctrl-C in a terminal reaches all processes, and
        # this process then ends the others.
        resource_tracker.ensure_running()  # started here, because its start unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            first = next(iterator)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        yield first
        yield from iterator
    finally:
        iterator.close()


def _start_worker(parent: int, index: int, count: int) -> None:
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)

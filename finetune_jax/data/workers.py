"""Results in order from worker processes, through grain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from finetune_jax.errors import UserError


def ordered(function: Callable[[int], Any], start: int, stop: int, workers: int) -> Iterator[Any]:
    """Yields function(start), …, function(stop - 1), computed ahead by processes.

    Process w of n computes every n-th from the w-th on, so results come in order whatever their
    number. Each starts anew, imports what `function` needs, and sees no accelerator.

    Args:
      function: picklable, of a number.
      start: first.
      stop: one after the last.
      workers: number of processes, at least 1.

    Raises:
      Exception: what `function` raised, at its place in the order.
    """
    try:
        import grain
    except ImportError:
        raise UserError("data.workers: worker processes need grain: pip install grain") from None
    from absl import flags

    # grain reads its own flags, which outside of a command nobody has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    numbers = grain.MapDataset.range(start, stop).map(function)
    read = numbers.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    # Through pipes: containers often have 64 MB of shared memory, two batches of photographs.
    options = grain.experimental.DatasetOptions(min_shm_size=2**62)
    dataset = grain.experimental.WithOptionsIterDataset(read, options).mp_prefetch(
        grain.MultiprocessingOptions(
            num_workers=min(workers, stop - start), per_worker_buffer_size=2
        ),
        worker_init_fn=_without_accelerator,
    )
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _without_accelerator(index: int, count: int) -> None:
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"

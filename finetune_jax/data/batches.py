"""Batches: the order of training is a pure function of (seed, step); evaluation sees all, once.

The position in the data is one number, the step. The number of worker processes and of hosts cannot
change the order, and a resumed run continues with exactly the batch that an uninterrupted one
would have seen.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from finetune_jax.data.images import BadImage
from finetune_jax.data.sources import (
    ActivationExamples,
    ArrayExamples,
    EncodedExamples,
    Examples,
)
from finetune_jax.data.workers import ordered
from finetune_jax.errors import UserError

Batch = dict[str, np.ndarray]

Encode = Callable[[dict[str, Any]], dict[str, np.ndarray]]
"""A source's example to arrays of fixed shape: the inputs preprocessed, and the targets."""


_CHUNK = 64  # examples that a worker hands over at once


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What the parts' ``host`` make of an example, in one dict; small enough to go to workers."""

    parts: tuple[Any, ...]

    def __call__(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """An example of a source as a batch has it."""
        return {name: x for part in self.parts for name, x in part.host(example).items()}


def cached(examples: Examples, encode: Encode, limit_bytes: int, workers: int = 0) -> Examples:
    """Decodes and preprocesses once into memory if that fits, else returns `examples`.

    Decoding a small PNG takes longer than a small network's share of a step on an accelerator.

    Args:
      examples: of a split.
      encode: applied to each.
      limit_bytes: of the whole, encoded.
      workers: processes that share the work; 0 for none.
    """
    count, first = len(examples), _encoded(examples, 0, encode)
    if count * sum(np.asarray(x).nbytes for x in first.values()) > limit_bytes:
        return examples
    chunks = _results(
        functools.partial(_chunk, examples, encode), 0, math.ceil(count / _CHUNK), workers
    )
    arrays = {n: np.empty((count, *np.shape(x)), np.asarray(x).dtype) for n, x in first.items()}
    for number, chunk in enumerate(chunks):
        for name, values in chunk.items():
            arrays[name][number * _CHUNK : number * _CHUNK + len(values)] = values
    return EncodedExamples(arrays)


def _chunk(examples: Examples, encode: Encode, number: int) -> Batch:
    stop = min((number + 1) * _CHUNK, len(examples))
    return gather(examples, np.arange(number * _CHUNK, stop), encode)


def _results(function: Callable[[int], Any], start: int, stop: int, workers: int) -> Iterator[Any]:
    return ordered(function, start, stop, workers) if workers else map(function, range(start, stop))


def gather(examples: Examples, indices: np.ndarray, encode: Encode) -> Batch:
    """Reads examples into arrays [n, …] by name; ``activation`` stands in for cached inputs."""
    if isinstance(examples, ActivationExamples):
        numbers = indices % len(examples)
        targets = {name: values[numbers] for name, values in examples.targets.items()}
        return {"activation": examples.read(indices), **targets}
    if isinstance(examples, EncodedExamples):
        return {name: values[indices] for name, values in examples.arrays.items()}
    return _stack([_encoded(examples, int(i), encode) for i in indices])


def _encoded(examples: Examples, index: int, encode: Encode) -> dict[str, np.ndarray]:
    """One example; an error while reading or encoding it says which it was."""
    try:
        return encode(examples[index])
    except BadImage:  # begins with the path
        raise
    except UserError as error:
        raise UserError(f"example {index}: {error}") from error
    except Exception as error:
        error.add_note(f"while reading example {index} of the split")
        raise


def _stack(items: list[dict[str, np.ndarray]]) -> Batch:
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


@dataclasses.dataclass
class TrainBatches:
    """Endless shuffled batches that start anywhere.

    Attributes:
      examples: random access.
      encode: applied to each.
      batch_size: of the global batch.
      seed: of the order.
      rows: of each global batch, that this process reads, as `mesh.local_rows`; None for all.
      workers: processes that read and decode; 0 for a thread. What is in memory needs none.
    """

    examples: Examples
    encode: Encode
    batch_size: int
    seed: int
    rows: np.ndarray | None = None
    workers: int = 0
    _last: tuple[int, np.ndarray] | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def indices(self, step: int) -> np.ndarray:
        """Example numbers i64[batch_size] of global batch `step`; epochs run into each other.

        With several fixed views per example, the numbers are those of this epoch's view.
        """
        count = len(self.examples)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // count
        views = self.examples.views if isinstance(self.examples, ActivationExamples) else 1
        return np.concatenate(
            [
                self._order(int(e))[positions[epochs == e] % count] + (int(e) % views) * count
                for e in np.unique(epochs)
            ]
        )

    def _order(self, epoch: int) -> np.ndarray:
        # Threads share the tuple, so epoch and order are replaced in one assignment.
        known = self._last
        if known is None or known[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            known = self._last = (epoch, generator.permutation(len(self.examples)))
        return known[1]

    def batch(self, step: int) -> Batch:
        """This process' rows of global batch `step`."""
        indices = self.indices(step)
        mine = indices if self.rows is None else indices[self.rows]
        return gather(self.examples, mine, self.encode)

    def iterate(self, start: int, stop: int, prefetch: int = 2) -> Iterator[Batch]:
        """Batches `start` to `stop` (excluded), read ahead by a thread or by `workers`.

        An error while reading is raised here, at the batch it belongs to.
        """
        if self.workers and start < stop and _lazy(self.examples):
            yield from ordered(self.batch, start, stop, self.workers)
            return
        ahead: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=prefetch)
        closed = threading.Event()

        def offer(item: Batch | BaseException) -> bool:
            while not closed.is_set():
                try:
                    ahead.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def read() -> None:
            try:
                for step in range(start, stop):
                    if not offer(self.batch(step)):
                        return
            except BaseException as error:  # noqa: BLE001  handed to the consumer
                offer(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                item = ahead.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()


def eval_batches(
    examples: Examples,
    encode: Encode,
    batch_size: int,
    workers: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is padded with zeros.

    Args:
      examples: of a split.
      encode: applied to each.
      batch_size: examples.
      workers: processes that read and decode; 0 for none. What is in memory needs none.
      rows: of each batch, that this process reads, as `mesh.local_rows`; None for all.

    Yields:
      What `gather` gives for the rows, and ``mask`` f32[batch_size] of the whole batch: 1 for an
      example, 0 for padding.
    """
    rows = np.arange(batch_size) if rows is None else rows
    make = functools.partial(_eval_batch, examples, encode, batch_size, rows)
    count = math.ceil(len(examples) / batch_size)
    yield from _results(make, 0, count, workers if _lazy(examples) else 0)


def _eval_batch(
    examples: Examples, encode: Encode, batch_size: int, rows: np.ndarray, number: int
) -> Batch:
    start = number * batch_size
    count = min(batch_size, len(examples) - start)
    mine = rows[rows < count]
    # Rows that are all padding need an example to be shaped like.
    indices = start + (mine if len(mine) else np.zeros(1, np.int64))

    def padded(x: np.ndarray) -> np.ndarray:
        inputs = len(x) // len(indices)  # several of an example come in a row
        return _padded(x[: inputs * len(mine)], inputs * len(rows))

    batch = jax.tree.map(padded, gather(examples, indices, encode))
    mask = np.zeros(batch_size, np.float32)
    mask[:count] = 1
    return {**batch, "mask": mask}


def _lazy(examples: Examples) -> bool:
    """Whether examples are decoded when they are read."""
    return not isinstance(examples, ActivationExamples | ArrayExamples)


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """Zeros behind, up to a length."""
    missing = np.zeros((length - len(values), *values.shape[1:]), values.dtype)
    return np.concatenate([values, missing])

"""Batches of training, whose order is a pure function of (seed, step), and of evaluation.

The step alone is the position in the training data. The number of worker processes and of hosts
does not change the order, and a resumed run continues with exactly the batch that an uninterrupted
run would have read. Evaluation reads every example once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from finetune_jax.data.examples import ActivationExamples, ArrayExamples, EncodedExamples, Examples
from finetune_jax.data.images import BadImage
from finetune_jax.data.workers import ordered
from finetune_jax.errors import UserError

Batch = dict[str, np.ndarray]

Encode = Callable[[dict[str, Any]], dict[str, np.ndarray]]
"""From an example of a source to arrays of fixed shape: preprocessed inputs and targets."""


_CHUNK = 64  # number of examples that a worker process returns at once


class HostPart(Protocol):
    """A part of an `Encoder`: a preprocessing or a task."""

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """Arrays of fixed shape, by their names in a batch, from an example of a source."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The `Encode` of a run: the arrays of all parts in one dict.

    An encoder is small enough to be pickled for worker processes.

    Attributes:
      parts: the preprocessing of the inputs and the task.
    """

    parts: tuple[HostPart, ...]

    def __call__(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of an example, by their names in a batch."""
        return {name: x for part in self.parts for name, x in part.host(example).items()}


def cached(examples: Examples, encode: Encode, limit_bytes: int, workers: int = 0) -> Examples:
    """Encodes a split into memory once, or returns `examples` if the result would be too large.

    To decode a small PNG in every epoch takes longer than a small network's step for it on an
    accelerator.

    Args:
      examples: the split.
      encode: applied to each example.
      limit_bytes: largest size of the encoded split, in bytes.
      workers: number of processes that share the work; 0 encodes in this process.
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
    """Reads and encodes examples into arrays [n, …], by their names in a batch.

    A batch of `ActivationExamples` has ``activation`` in place of the inputs.

    Args:
      examples: the split.
      indices: i64[n], numbers of the examples.
      encode: applied to each example that is not encoded yet.
    """
    if isinstance(examples, ActivationExamples):
        numbers = indices % len(examples)
        targets = {name: values[numbers] for name, values in examples.targets.items()}
        return {"activation": examples.read(indices), **targets}
    if isinstance(examples, EncodedExamples):
        return {name: values[indices] for name, values in examples.arrays.items()}
    return _stack([_encoded(examples, int(i), encode) for i in indices])


def _encoded(examples: Examples, index: int, encode: Encode) -> dict[str, np.ndarray]:
    """One encoded example; the message of an error has the number of the example."""
    try:
        return encode(examples[index])
    except BadImage:  # the error's own message has the path of the image
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
    """Endless shuffled batches, which can start at any step.

    Attributes:
      examples: the split.
      encode: applied to each example.
      batch_size: number of examples of a global batch, over all processes.
      seed: seed of the order.
      rows: numbers of the rows of each global batch that this process reads, as
        `finetune_jax.mesh.local_rows` gives them; None for all rows.
      workers: number of processes that read and decode; 0 reads in a thread. Examples in memory
        are always read in a thread.
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
        """Example numbers i64[batch_size] of the global batch of a step.

        A batch may end one epoch and begin the next. With several fixed views per example
        (`ActivationExamples.views`), the numbers are those of the epoch's view.
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
        """The rows of the global batch of a step that this process reads."""
        indices = self.indices(step)
        local = indices if self.rows is None else indices[self.rows]
        return gather(self.examples, local, self.encode)

    def iterate(self, start: int, stop: int, prefetch: int = 2) -> Iterator[Batch]:
        """Yields the batches of the steps from `start` to `stop` - 1.

        A thread, or `workers` processes, read ahead. An error while reading is raised in place of
        the batch that could not be read.

        Args:
          start: first step.
          stop: step after the last one.
          prefetch: number of batches that the thread reads ahead.
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
            except BaseException as error:  # noqa: BLE001  raised again by the consumer
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
    """Yields batches with every example once, in order; the last batch is padded with zeros.

    Args:
      examples: the split.
      encode: applied to each example.
      batch_size: number of examples of a global batch, over all processes.
      workers: number of processes that read and decode; 0 reads in this process. Examples in
        memory are always read in this process.
      rows: numbers of the rows of each global batch that this process reads, as
        `finetune_jax.mesh.local_rows` gives them; None for all rows.

    Yields:
      The arrays of `gather` for the rows of this process, and ``mask`` f32[batch_size] of the
      global batch: 1 for an example, 0 for padding.
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
    real = rows[rows < count]
    # Where all rows are padding, one example is read for the shapes of the arrays.
    indices = start + (real if len(real) else np.zeros(1, np.int64))

    def padded(x: np.ndarray) -> np.ndarray:
        inputs = len(x) // len(indices)  # consecutive rows of one example, such as its views
        return _padded(x[: inputs * len(real)], inputs * len(rows))

    batch = jax.tree.map(padded, gather(examples, indices, encode))
    mask = np.zeros(batch_size, np.float32)
    mask[:count] = 1
    return {**batch, "mask": mask}


def _lazy(examples: Examples) -> bool:
    """Whether examples are decoded when they are read, and not in memory."""
    return not isinstance(examples, ActivationExamples | ArrayExamples)


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """The values, followed by zeros up to a length."""
    missing = np.zeros((length - len(values), *values.shape[1:]), values.dtype)
    return np.concatenate([values, missing])

"""Batches: the order of training is a pure function of (seed, step); evaluation sees all, once.

The position in the data is one number, the step. Worker threads and the number of hosts cannot
change the order, and a resumed run continues with exactly the batch that an uninterrupted one
would have seen.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterator

import numpy as np

from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import ActivationExamples, ArrayExamples, Examples

Batch = dict[str, np.ndarray]


def cached(examples: Examples, preprocess: Preprocess, limit_bytes: int) -> Examples:
    """Decodes and resizes once into memory if that fits, else returns `examples` as they are.

    Decoding a small PNG takes longer than a small network's share of a step on an accelerator.
    """
    if len(examples) * preprocess.size**2 * 3 > limit_bytes:
        return examples
    items = [examples[i] for i in range(len(examples))]
    images = np.stack([preprocess.host(item["image"]) for item in items])
    return ArrayExamples(images, np.array([item["label"] for item in items], np.int32))


def gather(examples: Examples, indices: np.ndarray, preprocess: Preprocess) -> Batch:
    """Reads examples: ``image`` uint8[n, size, size, 3] or ``activation``; ``label`` i32[n]."""
    if isinstance(examples, ActivationExamples):
        numbers = indices % len(examples)
        return {"activation": examples.read(indices), "label": examples.labels[numbers]}
    if isinstance(examples, ArrayExamples) and examples.images.shape[1] == preprocess.size:
        return {"image": examples.images[indices], "label": examples.labels[indices]}
    items = [examples[int(i)] for i in indices]
    return {
        "image": np.stack([preprocess.host(item["image"]) for item in items]),
        "label": np.array([item["label"] for item in items], np.int32),
    }


@dataclasses.dataclass
class TrainBatches:
    """Endless shuffled batches that start anywhere.

    Attributes:
      examples: random access.
      preprocess: host part is applied here.
      batch_size: of the global batch.
      seed: of the order.
      process_index: which contiguous slice of each global batch this process reads.
      process_count: number of such slices.
    """

    examples: Examples
    preprocess: Preprocess
    batch_size: int
    seed: int
    process_index: int = 0
    process_count: int = 1

    def indices(self, step: int) -> np.ndarray:
        """Example numbers i64[batch_size] of global batch `step`; epochs run into each other.

        With several fixed views per example, the numbers are those of this epoch's view.
        """
        count = len(self.examples)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // count
        views = getattr(self.examples, "views", 1)
        return np.concatenate(
            [
                self._order(int(e))[positions[epochs == e] % count] + (int(e) % views) * count
                for e in np.unique(epochs)
            ]
        )

    def _order(self, epoch: int) -> np.ndarray:
        # Threads share the last one: epoch and order are set as one, or they could part.
        known = getattr(self, "_last", None)
        if known is None or known[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            known = self._last = (epoch, generator.permutation(len(self.examples)))
        return known[1]

    def batch(self, step: int) -> Batch:
        """This process' slice of global batch `step`."""
        share = self.batch_size // self.process_count
        mine = self.indices(step)[self.process_index * share : (self.process_index + 1) * share]
        return gather(self.examples, mine, self.preprocess)

    def iterate(self, start: int, stop: int, prefetch: int = 2) -> Iterator[Batch]:
        """Batches `start` to `stop` (excluded), read ahead by one background thread.

        An error while reading is raised here, at the batch it belongs to.
        """
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


def eval_batches(examples: Examples, preprocess: Preprocess, batch_size: int) -> Iterator[Batch]:
    """Every example once, in order; the last batch is padded with zeros.

    Yields ``image``, ``label``, and ``mask`` f32[batch_size]: 1 for an example, 0 for padding.
    """
    count = len(examples)
    for start in range(0, count, batch_size):
        indices = np.arange(start, min(start + batch_size, count))
        batch = gather(examples, indices, preprocess)
        missing = batch_size - len(indices)
        batch = {
            key: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
            for key, value in batch.items()
        }
        mask = np.zeros(batch_size, np.float32)
        mask[: len(indices)] = 1
        yield {**batch, "mask": mask}

"""Examples of one split: random access, and the forms that examples have in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


class Examples(Protocol):
    """Random access to examples of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The values of an example by column, such as ``image`` uint8[height, width, 3]."""


@runtime_checkable
class Labelled(Protocol):
    """Examples whose labels can be read without their images."""

    def labels(self) -> Sequence[Any]:
        """The value ``label`` of every example."""


def labels_of(examples: Examples) -> Sequence[Any]:
    """The value ``label`` of every example; images are decoded only if `Labelled` is missing."""
    if isinstance(examples, Labelled):
        return examples.labels()
    return [examples[i]["label"] for i in range(len(examples))]


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples in memory, not encoded: arrays [n, …] by column of the source."""

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.arrays.items()}

    def labels(self) -> Sequence[Any]:
        """See `Labelled`."""
        return self.arrays["label"].tolist()


@dataclasses.dataclass(frozen=True)
class EncodedExamples(ArrayExamples):
    """Encoded examples in memory: arrays [n, …] of inputs and targets, by name in a batch."""


@dataclasses.dataclass(frozen=True)
class ActivationExamples:
    """Cached activations, the inputs of the first stage that trains, in place of examples.

    Attributes:
      read: function of numbers i64[n] to activations, a tree of arrays [n * inputs, …]; view v of
        example i has the number v * len(self) + i.
      targets: arrays [examples, …], by their names in a batch.
      views: number of fixed augmented views per example; epoch e of training reads view e modulo
        `views`.
    """

    read: Callable[[np.ndarray], Any]
    targets: dict[str, np.ndarray]
    views: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise TypeError("activations of several examples are read at once, by `gather`")

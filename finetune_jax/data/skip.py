"""Finds the bad images of a split in a first pass, prints their names, and leaves them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from finetune_jax.data.examples import Examples, labels_of
from finetune_jax.data.images import BadImage
from finetune_jax.errors import UserError
from finetune_jax.progress import say
from finetune_jax.tables import shown

_SHOWN = 100  # number of bad images that are printed


class Subset:
    """Some examples of a split.

    Attributes:
      examples: the whole split.
      indices: i64[n], numbers of the examples that are in the subset.
      left_out: one line per bad image that is not in the subset: the path and what is wrong.
    """

    def __init__(
        self, examples: Examples, indices: np.ndarray, left_out: tuple[str, ...] = ()
    ) -> None:
        self.examples = examples
        self.indices = indices
        self.left_out = left_out

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[int(self.indices[index])]

    def labels(self) -> Sequence[Any]:
        """See `finetune_jax.data.examples.Labelled`."""
        labels = labels_of(self.examples)
        return [labels[i] for i in self.indices]


def bad_images(examples: Examples) -> tuple[str, ...]:
    """One line per bad image that `without_bad` left out: the path and what is wrong."""
    return examples.left_out if isinstance(examples, Subset) else ()


def without_bad(examples: Examples, where: str) -> Examples:
    """Returns the examples of a split without those whose image cannot be decoded.

    All images are decoded once, in threads; the names of bad images are printed.

    Args:
      examples: the split.
      where: name of the source and the split, for messages.

    Raises:
      UserError: every image is bad.
    """

    def problem(index: int) -> str | None:
        try:
            examples[index]
        except BadImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(problem, range(len(examples))))
    bad = tuple(p for p in problems if p)
    if not bad:
        return examples
    if len(bad) == len(examples):
        raise UserError(f"{where}: none of {len(bad)} images can be read; the first: {bad[0]}")
    say(
        listed(
            f"{where}: {len(bad)} of {len(examples)} images left out (data.on_bad_image='skip')",
            bad,
        )
    )
    return Subset(examples, np.array([i for i, p in enumerate(problems) if not p]), bad)


def listed(title: str, bad: Sequence[str]) -> str:
    """A title, and the first 100 lines about bad images below it, as they are printed."""
    lines = [title, *(f"  {line}" for line in bad[:_SHOWN])]
    if len(bad) > _SHOWN:
        lines.append(f"  … and {len(bad) - _SHOWN} more")
    return "\n".join(map(shown, lines))

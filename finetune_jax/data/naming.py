"""Names of examples in messages: the file of an image, or the number in the split."""

from __future__ import annotations

from typing import Any

from finetune_jax.data.classes import RenumberedExamples
from finetune_jax.data.examples import Examples
from finetune_jax.data.listing import TableExamples
from finetune_jax.data.skip import Subset


def example_name(examples: Examples, index: int) -> str:
    """Returns the image files of an example, or ``example 17`` if it has none.

    Args:
      examples: the split as its source reads it.
      index: number of the example.
    """
    inner: Any = examples
    number = index
    while isinstance(inner, Subset | RenumberedExamples):
        number = int(inner.indices[number]) if isinstance(inner, Subset) else number
        inner = inner.examples
    if isinstance(inner, TableExamples) and inner.images:
        return ", ".join(files[number] for files in inner.images.values())
    return f"example {index}"

"""Counts the texts of a split that are longer than the input of the model, and are cut."""

from __future__ import annotations

import numpy as np

from finetune_jax.data.examples import EncodedExamples, Examples
from finetune_jax.data.text import TextPreprocess

_MOST, _SAMPLE = 10_000, 1_000  # largest number of texts that are tokenized a second time


def cut_texts(preprocess: TextPreprocess, opened: Examples, encoded: Examples) -> str:
    """Returns a line about the texts that are cut; "" if none is.

    All texts are looked at if they are encoded in memory and at most 10,000 inputs are full, or if
    the split has at most 1,000 examples. Otherwise a sample that is spread over the split is looked
    at.

    Args:
      preprocess: tokenizes the texts.
      opened: the examples as the source reads them.
      encoded: the same examples, encoded into memory if they fit.
    """
    count = len(opened)
    full, most = np.arange(count), _SAMPLE
    if isinstance(encoded, EncodedExamples):
        mask = encoded.arrays["attention_mask"].all(-1).reshape(count, -1)
        full, most = np.flatnonzero(mask.any(1)), _MOST
    whole = len(full) <= most
    numbers = full if whole else np.linspace(0, count - 1, most).astype(int)
    cut = sum(preprocess.cuts(opened[int(i)]) for i in numbers)
    return cut_line(cut, count if whole else most, preprocess.size, sample=not whole)


def cut_line(cut: int, count: int, tokens: int, *, sample: bool = False) -> str:
    """A line that `cut` of `count` examples have a text that is cut; "" for none.

    Args:
      cut: number of examples with a text that is cut.
      count: number of examples that were looked at.
      tokens: number of tokens of an input.
      sample: whether there are more examples.
    """
    if not cut:
        return ""
    of = f"a sample of {count}" if sample else str(count)
    return f"the texts of {cut} of {of} examples are cut to {tokens} tokens (data.max_tokens)"

"""Counts the tokens of texts that a tokenizer does not know, and texts that have no token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from finetune_jax.data.examples import EncodedExamples, Examples
from finetune_jax.data.text import TextPreprocess

_SAMPLE = 1_000  # largest number of examples that are tokenized for this
_UNKNOWN = 0.25  # share of unknown tokens above which a line is yielded


def token_remarks(preprocess: TextPreprocess, opened: Examples, encoded: Examples) -> Iterator[str]:
    """Yields lines about texts that say nothing to the model: unknown tokens and empty texts.

    All texts are looked at if they are encoded in memory, otherwise a sample that is spread over
    the split.

    Args:
      preprocess: tokenizes the texts.
      opened: the examples as the source reads them.
      encoded: the same examples, encoded into memory if they fit.
    """
    if isinstance(encoded, EncodedExamples):
        arrays = {name: encoded.arrays[name] for name in ("input_ids", "attention_mask")}
        what = str(len(opened))
    else:
        numbers = np.linspace(0, len(opened) - 1, min(_SAMPLE, len(opened))).astype(int)
        items = [preprocess.host(opened[int(i)]) for i in numbers]
        arrays = {n: np.stack([x[n] for x in items]) for n in ("input_ids", "attention_mask")}
        what = f"a sample of {len(numbers)}"
    size = preprocess.size
    ids, mask = (arrays[n].reshape(-1, size) for n in ("input_ids", "attention_mask"))
    own = preprocess.special_tokens
    used = mask.sum(1) - own
    empty = int((used <= 0).sum())
    if empty:
        yield f"{empty} texts of {what} examples are empty"
    unknown = preprocess.unknown_token
    total = int(np.maximum(used, 0).sum())
    if unknown is None or not total:
        return
    token, number = unknown
    share = float(((ids == number) & (mask == 1)).sum()) / total
    if share > _UNKNOWN:
        yield (
            f"{share:.0%} of the tokens of {what} examples are {token!r}, which the tokenizer "
            f"gives for what it does not know; expected a tokenizer for the language of the texts"
        )

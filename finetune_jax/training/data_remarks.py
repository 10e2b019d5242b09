"""What a run says about its data before it trains: overlaps, cut texts, unknown labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from finetune_jax.data.cut_texts import cut_texts
from finetune_jax.data.examples import Examples
from finetune_jax.data.naming import example_name
from finetune_jax.data.overlap import contradictions, shared_examples, shared_parts
from finetune_jax.data.splits import past_end
from finetune_jax.data.text import TextPreprocess
from finetune_jax.data.unknown_tokens import token_remarks
from finetune_jax.setup import Setup
from finetune_jax.tables import shown


def data_remarks(
    setup: Setup, opened: Mapping[str, Examples], encoded: Mapping[str, Examples]
) -> Iterator[str]:
    """Yields a line for each remark.

    Args:
      setup: the resolved config.
      opened: examples by name of the split, as the source reads them.
      encoded: the same examples, encoded into memory if they fit.
    """
    data = setup.config.data
    for name in opened:
        if beyond := past_end(data[name], setup.source.splits):
            yield f"data.{name}: {beyond}; the run takes those that there are"
    overlapping = set()
    for name, other, count in shared_parts({n: data[n] for n in opened}, setup.source.splits):
        overlapping.add((name, other))
        if name == other:
            yield f"data.{name}={data[name]!r}: {count} examples are in it twice"
        else:
            yield (
                f"data.{name}={data[name]!r} and data.{other}={data[other]!r} have {count} "
                f"examples in common"
            )
    preprocess = setup.preprocess
    inputs = tuple(preprocess.abstract(1))
    for name, other, count, first in shared_examples(opened, encoded, inputs, preprocess.columns):
        if (name, other) not in overlapping:
            yield shown(
                f"data: {count} of {len(opened[other])} examples of {other} are also in {name}, "
                f"with equal inputs, the first of them {first}"
            )
    for name, examples in encoded.items():
        if numbers := contradictions(examples, inputs):
            yield shown(
                f"data: {len(numbers)} examples of {name} have the inputs of another example and "
                f"another label, the first of them {example_name(opened[name], numbers[0])}"
            )
    if setup.source.unknown:
        yield (
            f"{setup.source.name}: {setup.source.unknown} labels are unknown; the loss and the "
            f"scores leave them out"
        )
    if isinstance(preprocess, TextPreprocess):
        for name, examples in opened.items():
            if line := cut_texts(preprocess, examples, encoded[name]):
                yield f"data.{name}: {line}"
            for line in token_remarks(preprocess, examples, encoded[name]):
                yield f"data.{name}: {line}"

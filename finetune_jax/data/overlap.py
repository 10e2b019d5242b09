"""What stands in two splits: parts that two expressions share, and examples with equal inputs.

An example that is trained on and scored makes the score too good. Nothing is left out: a run says
what it finds.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from finetune_jax.data.classes import RenumberedExamples
from finetune_jax.data.examples import EncodedExamples, Examples
from finetune_jax.data.listing import TableExamples
from finetune_jax.data.naming import example_name
from finetune_jax.data.skip import Subset
from finetune_jax.data.splits import resolve_split

_MOST_BYTES = 2**28


def shared_parts(
    expressions: Mapping[str, str], sizes: Mapping[str, int]
) -> Iterator[tuple[str, str, int]]:
    """Pairs of splits whose expressions have examples in common.

    Args:
      expressions: text of each split, such as ``train[:80%]``, by its name.
      sizes: number of examples of each split of the source.

    Yields:
      (name, other name, number of the examples that both have); the two names are equal for an
      expression that has examples twice.
    """
    ranges = {name: resolve_split(text, sizes) for name, text in expressions.items() if text}
    for (name, parts), (other, others) in itertools.combinations_with_replacement(
        ranges.items(), 2
    ):
        pairs: Any = itertools.product(parts, others)
        if name == other:
            pairs = itertools.combinations(parts, 2)
        count = sum(max(0, min(a[2], b[2]) - max(a[1], b[1])) for a, b in pairs if a[0] == b[0])
        if count:
            yield name, other, count


def shared_examples(
    opened: Mapping[str, Examples],
    encoded: Mapping[str, Examples],
    inputs: Sequence[str],
    columns: Sequence[str],
) -> Iterator[tuple[str, str, int, str]]:
    """Pairs of splits with examples whose inputs are equal.

    Inputs are compared bit by bit where both splits are encoded in memory and not too large;
    otherwise the paths or the texts of tables are compared.

    Args:
      opened: examples by name of the split, as the source reads them.
      encoded: the same examples, encoded into memory if they fit.
      inputs: names of the inputs of the model in an encoded example.
      columns: columns of an example that the inputs are made of.

    Yields:
      (name, other name, number of examples of the other split that the first split also has, name
      of the first of them).
    """
    total = sum(_bytes(examples, inputs) for examples in encoded.values())
    keys: dict[str, list[Hashable]] = {}
    for name, examples in encoded.items():
        if total <= _MOST_BYTES and isinstance(examples, EncodedExamples):
            arrays = [examples.arrays[key] for key in inputs]
            keys[name] = [hash(b"".join(rows)) for rows in zip(*map(_rows, arrays), strict=True)]
        else:
            keys[name] = _written(opened[name], columns)
    for name, other in itertools.combinations(keys, 2):
        known = {*keys[name]}
        same = [i for i, key in enumerate(keys[other]) if key in known]
        if same:
            yield name, other, len(same), example_name(opened[other], same[0])


def _bytes(examples: Examples, inputs: Sequence[str]) -> int:
    if isinstance(examples, EncodedExamples):
        return sum(examples.arrays[key].nbytes for key in inputs)
    return _MOST_BYTES + 1


def _rows(array: Any) -> Iterator[bytes]:
    return (row.tobytes() for row in array)


def _written(examples: Examples, columns: Sequence[str]) -> list[Hashable]:
    """The paths of images, or the texts, of each example; an empty list if they are not known."""
    if isinstance(examples, Subset):
        whole = _written(examples.examples, columns)
        return [whole[int(i)] for i in examples.indices] if whole else []
    if isinstance(examples, RenumberedExamples):
        return _written(examples.examples, columns)
    if isinstance(examples, TableExamples):
        found = [examples.images.get(name) or examples.columns.get(name) for name in columns]
        if all(found):
            return list(zip(*(values for values in found if values), strict=True))
    return []

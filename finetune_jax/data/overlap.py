"""Finds what two splits have in common: parts of their expressions, and examples of equal inputs.

An example that is both trained on and scored makes the score too good. A run reports such examples
and leaves none of them out.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_jax.data.classes import RenumberedExamples
from finetune_jax.data.examples import EncodedExamples, Examples
from finetune_jax.data.listing import TableExamples, content_digest
from finetune_jax.data.naming import example_name
from finetune_jax.data.skip import Subset
from finetune_jax.data.splits import resolve_split

# Bytes of encoded inputs, or of files, that are compared, and number of files.
_MOST_INPUTS, _MOST_READ, _MOST_FILES = 2**30, 2**28, 200_000


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

    Inputs are compared bit by bit where both splits are encoded in memory and not too large.
    Otherwise the texts of tables, or the paths and the contents of image files, are compared. Only
    files of equal sizes are read, and no file is read if there are too many files of equal sizes.

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
    keys: dict[str, Sequence[Hashable]] = {}
    for name, examples in encoded.items():
        if total <= _MOST_INPUTS and isinstance(examples, EncodedExamples):
            arrays = [examples.arrays[key] for key in inputs]
            keys[name] = [hash(b"".join(rows)) for rows in zip(*map(_rows, arrays), strict=True)]
    if len(keys) < len(encoded):
        written = {name: _written(examples, columns) for name, examples in opened.items()}
        cells = {name: [row for _, row in rows] for name, rows in written.items()}
        files = any(is_file for rows in written.values() for is_file, _ in rows[:1])
        keys = _by_content(cells) if files else dict(cells)
    for name, other in itertools.combinations(keys, 2):
        known = {*keys[name]}
        same = [i for i, key in enumerate(keys[other]) if key in known]
        if same:
            yield name, other, len(same), example_name(opened[other], same[0])


def contradictions(examples: Examples, inputs: Sequence[str]) -> list[int]:
    """Numbers of the examples whose inputs an earlier example has with another class.

    The list is empty where the examples are not in memory, are too large to be compared, or have
    no classes. Of several labels, an example has the same or others.

    Args:
      examples: encoded examples of one split.
      inputs: names of the inputs of the model in an encoded example.
    """
    if not isinstance(examples, EncodedExamples) or _bytes(examples, inputs) > _MOST_READ:
        return []
    labels = examples.arrays.get("label")
    if labels is None or (labels.ndim == 1 and labels.dtype.kind not in "iu"):
        return []
    first: dict[int, bytes] = {}
    rows = zip(*(_rows(examples.arrays[key]) for key in inputs), strict=True)
    keys = (hash(b"".join(parts)) for parts in rows)
    pairs = enumerate(zip(keys, _rows(labels), strict=True))
    return [i for i, (key, label) in pairs if first.setdefault(key, label) != label]


def _bytes(examples: Examples, inputs: Sequence[str]) -> int:
    if isinstance(examples, EncodedExamples):
        return sum(examples.arrays[key].nbytes for key in inputs)
    return _MOST_INPUTS + 1


def _rows(array: Any) -> Iterator[bytes]:
    return (row.tobytes() for row in array)


def _written(examples: Examples, columns: Sequence[str]) -> list[tuple[bool, tuple[str, ...]]]:
    """For each example: whether it has image files, and the paths of the files or its texts.

    The list is empty where paths and texts are not known before the examples are read.
    """
    if isinstance(examples, Subset):
        whole = _written(examples.examples, columns)
        return [whole[int(i)] for i in examples.indices] if whole else []
    if isinstance(examples, RenumberedExamples):
        return _written(examples.examples, columns)
    if isinstance(examples, TableExamples):
        cells = [examples.images.get(name) or examples.columns.get(name) for name in columns]
        found = [values for values in cells if values]
        if len(found) == len(columns):
            return [(bool(examples.images), row) for row in zip(*found, strict=True)]
    return []


def _by_content(
    paths: Mapping[str, Sequence[tuple[str, ...]]],
) -> dict[str, Sequence[Hashable]]:
    """The same rows, with digests in place of the paths of files that may be equal."""
    split_of: dict[str, set[str]] = {}
    for split, rows in paths.items():
        for file in itertools.chain(*rows):
            split_of.setdefault(file, set()).add(split)
    if len(split_of) > _MOST_FILES:
        return dict(paths)
    by_size: dict[int, list[str]] = {}
    for file in split_of:
        with contextlib.suppress(OSError):  # another check reports a missing file
            by_size.setdefault(os.stat(file).st_size, []).append(file)
    alike = {
        size: files
        for size, files in by_size.items()
        if len(files) > 1 and len({*itertools.chain(*(split_of[file] for file in files))}) > 1
    }
    if sum(size * len(files) for size, files in alike.items()) > _MOST_READ:
        return dict(paths)
    digests = {file: content_digest(Path(file)) for files in alike.values() for file in files}
    return {
        split: [tuple(digests.get(file, file) for file in row) for row in rows]
        for split, rows in paths.items()
    }

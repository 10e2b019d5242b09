"""Splits that data does not have: a validation split held out of training, and a missing test.

Data often comes with ``train`` and ``test`` alone, or with ``train`` alone. A config that asks for
``data.validation="validation"`` then gets a tenth of the training split, which is drawn by
``data.split_seed`` and is not trained on. A test split cannot be made up: it is missing, which is
said, and nothing is scored on it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from finetune_jax.data.examples import Examples, labels_of
from finetune_jax.data.label_columns import strata
from finetune_jax.data.labels import present
from finetune_jax.data.skip import Subset
from finetune_jax.data.sources import Source
from finetune_jax.data.splits import resolve_split
from finetune_jax.errors import UserError
from finetune_jax.progress import muted

SHARE = 10
"""One training example of this many is held out for validation."""


def with_validation(source: Source, seed: int) -> Source | None:
    """The source with a split ``validation``, which is held out of its split ``train``.

    A tenth of the examples, and at least one, is held out: of each class, and of each range of a
    numeric label, its share up to one example. The only example of a class stays in training.

    Args:
      source: a source with at least two examples in ``train``.
      seed: seed of the draw, ``data.split_seed``.

    Returns:
      The source; None where too few classes have several examples.
    """
    total = source.splits["train"]
    count = max(1, total // SHARE)
    if "train" in source.present:
        with muted():
            known = Counter(map(str, labels_of(source.reader("train"))))
        count = min(count, sum(number for number in known.values() if number > 1) // 2)
        if not count:
            return None

    @functools.cache  # labels of a large data set are read once, and only where they are needed
    def parts() -> dict[str, np.ndarray]:
        with muted():
            train = source.reader("train")
            labels: Sequence[Any] = labels_of(train) if "label" in source.columns else [0] * total
        return _drawn(strata(list(labels)), count, seed)

    sizes = {**source.splits, "train": total - count, "validation": count}

    def read(split: str) -> Examples:
        ranges = resolve_split(split, sizes)
        wholes = list(dict.fromkeys(_whole(name) for name, _, _ in ranges))
        ends = np.cumsum([0, *(source.splits[name] for name in wholes)])
        starts = dict(zip(wholes, ends[:-1].tolist(), strict=True))
        indices = [
            starts[_whole(name)]
            + (parts()[name] if _whole(name) == "train" else np.arange(sizes[name]))[first:last]
            for name, first, last in ranges
        ]
        return Subset(source.reader("+".join(wholes)), np.concatenate(indices))

    found = dict(source.present)
    if "train" in found:
        with muted():
            labels = labels_of(source.reader("train"))
        found |= {name: present(labels[i] for i in chosen) for name, chosen in parts().items()}
    return dataclasses.replace(
        source,
        splits=sizes,
        reader=read,
        origin=f"{source.origin} validation of {count} by {seed}",
        present=found,
        contents=lambda: {
            **(source.contents() if source.contents else {}),
            "validation": f"{count} of {total} examples of train, by seed {seed}",
        },
        held_out=count,
    )


def _whole(name: str) -> str:
    """The split of the source that a split is a part of."""
    return "train" if name == "validation" else name


def _drawn(labels: Sequence[Any], count: int, seed: int) -> dict[str, np.ndarray]:
    """Example numbers i64[n] of ``train`` and ``validation``, each in an order of the seed."""
    generator = np.random.Generator(np.random.Philox(key=[seed, len(labels)]))
    order = generator.permutation(len(labels))
    order = np.array(sorted(order, key=lambda i: labels[i]), np.int64)
    keys = [str(label) for label in labels]  # a label of several classes is a list
    counts = Counter(keys)
    several = order[[counts[keys[i]] > 1 for i in order]]
    candidates = several if len(several) >= 2 * count else order
    places = ((np.arange(count) + 0.5) * len(candidates) / count).astype(np.int64)
    chosen = candidates[places]
    kept = np.setdiff1d(order, chosen)
    return {"train": generator.permutation(kept), "validation": generator.permutation(chosen)}


def settle_splits(source: Source, data: ConfigDict) -> Source:
    """The source with the validation split that ``config.data`` asks for, if it can be made.

    Returns:
      A source whose `Source.missing` names the splits ``validation`` and ``test`` that the config
      asks for by their names, and that the source neither has nor can hold out.
    """
    lacks = [n for n in ("validation", "test") if data[n] == n and not source.splits.get(n)]
    several = source.splits.get("train", 0) > 1
    if "validation" in lacks and several and (held := with_validation(source, data.split_seed)):
        source = held
        lacks.remove("validation")
    return dataclasses.replace(source, missing=tuple(lacks)) if lacks else source


def require_splits(source: Source, data: ConfigDict) -> None:
    """Raises UserError for a split that training needs and the source does not have.

    The message names the key, what the source has, and the flags that use it.
    """
    for key in ("train", "validation", "test"):
        try:
            found = resolve_split(data[key], source.splits) if data[key] else []
        except UserError as error:
            raise UserError(f"data.{key}: {str(error).rstrip('.')}.{_cure(key, source)}") from None
        if key == "train" and not sum(stop - start for _, start, stop in found):
            raise UserError(
                f"data.train={data.train!r}: expected examples to train on, found none."
                f"{_cure(key, source)}"
            )


def _cure(key: str, source: Source) -> str:
    """What a source has in place of a split, and the flags to paste."""
    has = {name: size for name, size in source.splits.items() if size}
    listed = ", ".join(f"{name} ({size:,})" for name, size in has.items()) or "none"
    text = f" {source.name!r} has the splits {listed}"
    if key != "train" or not has:
        return f"{text}; --config.data.{key}='' goes without"
    first = max(has, key=lambda name: has[name])
    others = [name for name in has if name != first]
    rest = f"--config.data.test='{others[0] if others else ''}'"
    return (
        f"{text}. To train on nine tenths of {first!r}: --config.data.train='{first}[:90%]' "
        f"--config.data.validation='{first}[90%:]' {rest}"
    )

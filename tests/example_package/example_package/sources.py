"""A data source: ``--config.data.source=example_package.sources:open_shades:40``."""

from __future__ import annotations

import numpy as np

from finetune_jax.data.examples import ArrayExamples
from finetune_jax.data.sources import Options, Source
from finetune_jax.data.splits import resolve_split

CLASSES = ("black", "dark", "light", "white")


def open_shades(name: str, argument: str, options: Options) -> Source:
    """Grey images of 16 pixels with noise, labelled with their shade.

    Args:
      name: the text of ``config.data.source``.
      argument: number of images in each split, 40 if empty.
      options: options of reading, which this source does not need.
    """
    del options
    count = int(argument or 40)
    splits = {"train": count, "validation": count, "test": count}

    def read(split: str) -> ArrayExamples:
        parts = [
            _draw(part, count, start, stop) for part, start, stop in resolve_split(split, splits)
        ]
        return ArrayExamples({key: np.concatenate([p[key] for p in parts]) for key in parts[0]})

    return Source(name, CLASSES, splits, read, origin=argument, columns=("image", "label"))


def _draw(split: str, count: int, start: int, stop: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng([*split.encode()])
    labels = np.arange(count) % len(CLASSES)
    noise = draw.integers(0, 20, (count, 16, 16, 3))
    images = (labels[:, None, None, None] * 75 + noise).astype(np.uint8)
    return {"image": images[start:stop], "label": labels[start:stop]}

"""UCI handwritten digits, which scikit-learn ships: 1,797 images of 8x8, values 0 to 16."""

from __future__ import annotations

import numpy as np

from finetune_jax.data.sources import ArrayExamples, Examples, Options, Source
from finetune_jax.data.splits import resolve_split

_SIZES = {"train": 1077, "validation": 360, "test": 360}


def open_(name: str, rest: str, options: Options) -> Source:
    """The stratified 60/20/20 split is fixed for ever: its seed is not the run's."""
    del rest, options

    def read(split: str) -> Examples:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        data = load_digits()
        gray = np.round(data.images * (255 / 16)).astype(np.uint8)
        images = np.repeat(gray[..., None], 3, axis=-1)
        labels = data.target.astype(np.int32)
        indices = np.arange(len(labels))
        rest, test = train_test_split(
            indices, test_size=_SIZES["test"], stratify=labels, random_state=0
        )
        train, validation = train_test_split(
            rest, test_size=_SIZES["validation"], stratify=labels[rest], random_state=0
        )
        parts = {"train": train, "validation": validation, "test": test}
        chosen = np.concatenate(
            [parts[part][start:stop] for part, start, stop in resolve_split(split, _SIZES)]
        )
        return ArrayExamples({"image": images[chosen], "label": labels[chosen]})

    return Source(name, tuple("0123456789"), _SIZES, read, columns=("image", "label"))

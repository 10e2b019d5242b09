"""UCI handwritten digits, which scikit-learn ships: 1,797 images of 8x8 pixels, values 0 to 16.

``digits`` has ten classes. Variants are for other tasks. ``digits:attributes``: the label is a 0/1
vector of properties of the digit. ``digits:masks``: every pixel has a class, which is the digit
where the value is 8 or more, else the background. ``digits:pairs``: each image is paired with
another image of its split; the label is 1 for the pairs of one class, which are half of all pairs,
and 0 for the others.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from finetune_jax.data.examples import ArrayExamples, Examples
from finetune_jax.data.sources import Options, Source
from finetune_jax.data.splits import resolve_split
from finetune_jax.errors import UserError, nearest

# By name of the attribute: the digits that have it.
ATTRIBUTES = {
    "odd": "13579",
    "prime": "2357",
    "multiple of 3": "0369",
    "above 4": "56789",
    "has a loop": "0689",
}
_INK = 8  # smallest value of a pixel that is not background
_SIZES = {"train": 1077, "validation": 360, "test": 360}


def open_(name: str, rest: str, options: Options) -> Source:
    """Opens the digits; the stratified 60/20/20 split is the same in every run.

    Raises:
      UserError: an unknown variant.
    """
    del options
    variants = ("attributes", "masks", "pairs")
    if rest and rest not in variants:
        raise UserError(f"data.source: unknown variant {name!r}.{nearest(rest, variants)}")
    digits = tuple("0123456789")
    names = {
        "attributes": tuple(ATTRIBUTES), "masks": ("background", *digits), "pairs": (),
    }.get(rest, digits)  # fmt: skip

    def read(split: str) -> Examples:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        data = load_digits()
        gray = np.round(data.images * (255 / 16)).astype(np.uint8)
        images = np.repeat(gray[..., None], 3, axis=-1)
        labels = data.target.astype(np.int32)
        indices = np.arange(len(labels))
        others, test = train_test_split(
            indices, test_size=_SIZES["test"], stratify=labels, random_state=0
        )
        train, validation = train_test_split(
            others, test_size=_SIZES["validation"], stratify=labels[others], random_state=0
        )
        parts = {"train": train, "validation": validation, "test": test}
        ranges = resolve_split(split, _SIZES)
        chosen = np.concatenate([parts[part][start:stop] for part, start, stop in ranges])
        arrays = {"image": images[chosen], "label": labels[chosen]}
        if rest == "masks":
            ink = data.images[chosen] >= _INK
            arrays["mask"] = (ink * (1 + arrays.pop("label"))[:, None, None]).astype(np.uint8)
        if rest == "attributes":
            true = [[str(digit) in which for which in ATTRIBUTES.values()] for digit in range(10)]
            arrays["label"] = np.array(true, np.float32)[arrays["label"]]
        if rest == "pairs":
            others = np.concatenate(
                [parts[p][_partners(labels[parts[p]])[start:stop]] for p, start, stop in ranges]
            )
            arrays["image2"] = images[others]
            arrays["label"] = (arrays["label"] == labels[others]).astype(np.float32)
        return ArrayExamples(arrays)

    target = "mask" if rest == "masks" else "label"
    columns = ("image", target, "image2") if rest == "pairs" else ("image", target)

    return Source(
        name, names, _SIZES, read, columns=columns, pairs=rest == "pairs",
        contents=lambda: {"content": _digests(rest)},
    )  # fmt: skip


@functools.lru_cache
def _digests(variant: str) -> dict[str, str]:
    """16 hex digits of the SHA-256 of all arrays of each split of a variant."""
    found = {}
    source = open_(f"digits:{variant}".rstrip(":"), variant, Options())
    for split in _SIZES:
        digest = hashlib.sha256()
        examples = source.read(split)
        assert isinstance(examples, ArrayExamples)
        for key, values in sorted(examples.arrays.items()):
            digest.update(f"{key} {values.dtype.name} {values.shape}".encode() + values.tobytes())
        found[split] = digest.hexdigest()[:16]
    return found


def _partners(labels: np.ndarray) -> np.ndarray:
    """For each of labels i32[n] the number of another example, alternately with an equal label."""
    generator = np.random.Generator(np.random.Philox(0))
    indices = np.arange(len(labels))
    return np.array(
        [
            generator.choice(indices[((labels == own) == (i % 2 == 0)) & (indices != i)])
            for i, own in enumerate(labels)
        ]
    )

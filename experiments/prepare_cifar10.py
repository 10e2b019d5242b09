"""Builds the TFDS data set ``cifar10`` from lossless WebP files, for machines without a network.

Command:
  python -m experiments.prepare_cifar10 --images=FOLDER --data_dir=DIR

FOLDER has ``cifar10_train_webp.zip`` and ``cifar10_test_webp.zip`` with entries
``split/class/name.webp``. The data set is written as array_record files with TFDS's own feature
specification and splits, so that ``tfds:cifar10`` with ``data_dir=DIR`` reads it as usual.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import app, flags
from PIL import Image

# The order of labels in the original archive of CIFAR-10, which TFDS uses too.
_LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

_IMAGES = flags.DEFINE_string("images", None, "Folder with the two zips.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS data_dir to write to.", required=True)


def _examples(zip_path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with zipfile.ZipFile(zip_path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".webp"))
        for index, name in enumerate(names):
            label = name.split("/")[1]
            # Images are passed as PNG bytes: TFDS would need TensorFlow to encode an array.
            encoded = io.BytesIO()
            image = Image.open(io.BytesIO(archive.read(name)), formats=("WEBP",))
            image.convert("RGB").save(encoded, "PNG")
            encoded.seek(0)
            key = f"{split}_{index:05d}"
            yield key, {"id": key, "image": encoded, "label": label}


def main(_: list[str]) -> None:
    """Writes the dataset."""
    builder_class = tfds.builder_cls("cifar10")
    folder = Path(_IMAGES.value)

    # TFDS takes the name of a data set from the name of its class. Only the download is replaced.
    def _split_generators(self: Any, _: Any) -> dict[str, Any]:
        self.info.features["label"].names = _LABELS
        return {s: _examples(folder / f"cifar10_{s}_webp.zip", s) for s in ("train", "test")}

    builder_class._split_generators = _split_generators
    builder = builder_class(data_dir=_DATA_DIR.value, file_format="array_record")
    builder.download_and_prepare()
    for split, info in builder.info.splits.items():
        print(split, info.num_examples)


if __name__ == "__main__":
    app.run(main)

"""Builds the TFDS dataset ``cifar10`` from lossless WebP zips, where nothing can be downloaded.

Command:
  python -m experiments.prepare_cifar10 --images=FOLDER --data_dir=DIR

FOLDER holds ``cifar10_train_webp.zip`` and ``cifar10_test_webp.zip`` with entries
``split/class/name.webp``. Written with TFDS's own feature spec and splits as array_record, so that
``tfds:cifar10`` with ``data_dir=DIR`` reads it like on any other machine.
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

# The label order of CIFAR-10 and of TFDS, which reads it from the original archive.
_LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

_IMAGES = flags.DEFINE_string("images", None, "Folder with the two zips.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS data_dir to write to.", required=True)


def _examples(zip_path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with zipfile.ZipFile(zip_path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".webp"))
        for index, name in enumerate(names):
            label = name.split("/")[1]
            # Handed over as PNG bytes: TFDS would need TensorFlow to encode an array.
            encoded = io.BytesIO()
            Image.open(io.BytesIO(archive.read(name))).convert("RGB").save(encoded, "PNG")
            encoded.seek(0)
            key = f"{split}_{index:05d}"
            yield key, {"id": key, "image": encoded, "label": label}


def main(_: list[str]) -> None:
    """Writes the dataset."""
    builder_class = tfds.builder_cls("cifar10")
    folder = Path(_IMAGES.value)

    # The name of a TFDS class is the name of its dataset: everything but the download is theirs.
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

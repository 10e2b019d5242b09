"""Prepares the data of the ablations as folders of images by class.

Command (FINETUNE_JAX_DATA is the folder with the original data):
  python -m experiments.materials --output=runs/materials

``flowers224`` and ``hymenoptera224`` are unpacked. ``cifar10_c/NAME`` has CIFAR-10 test images
under one corruption at severity 5, as PNG files in the order of the original file names: 1,000
balanced images for training, 500 for validation and 2,000 for testing. The pretrained weights were
trained on the CIFAR-10 training images only. ``cifar10_c/clean`` has the same images without
corruption.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

_OUTPUT = flags.DEFINE_string("output", "runs/materials", "Folder to write to.")

DATA = Path(os.environ.get("FINETUNE_JAX_DATA", "data"))

CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")
"""One corruption of each group of Hendrycks and Dietterich: noise, blur, weather, digital."""

SEVERITY = 5

# Number of images per class in each split.
_SIZES = {"train": 100, "validation": 50, "test": 200}


def unpack(name: str, output: Path) -> None:
    """Unpacks a zip file of images by split and class."""
    with zipfile.ZipFile(DATA / name / f"{name}.zip") as archive:
        archive.extractall(output / name)


def cifar_test() -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields split, class and pixels (u8[32, 32, 3]) of the images that are used."""
    counts: dict[str, int] = {}
    with zipfile.ZipFile(DATA / "cifar10" / "cifar10_test_webp.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".webp")):
            label = name.split("/")[1]
            number = counts[label] = counts.get(label, 0) + 1
            for split, size in _SIZES.items():
                if 0 < number <= size:
                    image = Image.open(io.BytesIO(archive.read(name)), formats=("WEBP",))
                    yield split, label, np.asarray(image.convert("RGB"))
                number -= size


def corrupted(output: Path) -> None:
    """Writes the CIFAR-10 test images under each corruption."""
    from finetune_jax.evaluation.corruptions import corrupt

    rows = list(cifar_test())
    images = np.stack([pixels for _, _, pixels in rows])
    for name in ("clean", *CORRUPTIONS):
        changed = images if name == "clean" else corrupt(name, images, SEVERITY, seed=0, first=0)
        for number, ((split, label, _), pixels) in enumerate(zip(rows, changed, strict=True)):
            folder = output / "cifar10_c" / name / split / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(pixels)).save(folder / f"{number:05d}.png")
        print(f"cifar10_c/{name}: {len(rows)} images")


def main(argv: list[str]) -> None:
    """Runs the command; folders that exist are not changed."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    output = Path(_OUTPUT.value)
    for name in ("flowers224", "hymenoptera224"):
        if not (output / name).is_dir():
            unpack(name, output)
    if not (output / "cifar10_c").is_dir():
        corrupted(output)


if __name__ == "__main__":
    app.run(main)

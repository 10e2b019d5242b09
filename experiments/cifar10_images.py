"""Images of CIFAR-10 as PNG files, in folders of their classes."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

from PIL import Image

DATA = Path(os.environ.get("FINETUNE_JAX_DATA", "data"))
"""Folder of the data, with the images in ``cifar10/``."""


def cifar10(folder: Path, training: int = 500) -> Path:
    """Unpacks all test images and `training` training images of CIFAR-10 as PNG files."""
    for split in ("train", "test"):
        if (folder / split).is_dir():
            continue
        with zipfile.ZipFile(DATA / "cifar10" / f"cifar10_{split}_webp.zip") as archive:
            members = sorted(n for n in archive.namelist() if n.endswith(".webp"))
            step = max(1, len(members) // training) if split == "train" else 1
            for name in members[::step]:
                path = (folder / name).with_suffix(".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.open(io.BytesIO(archive.read(name)), formats=("WEBP",)).save(path)
    return folder

"""Inputs of exported models."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of three images of different sizes, larger and smaller than the model's."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(3):
        size = (int(generator.integers(9, 60)), int(generator.integers(9, 60)), 3)
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder

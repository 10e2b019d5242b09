"""Corruptions without random numbers are those of the published code, of `imagecorruptions`."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from finetune_jax.evaluation.corruptions import apply, image_keys

_SIDE = 224
# Largest difference in grey levels of 255. The published contrast and brightness round at other
# steps, and the published zoom_blur and saturate use scipy and skimage.
_NAMES = {
    "brightness": 1,
    "contrast": 1,
    "defocus_blur": 1,
    "jpeg_compression": 0,
    "pixelate": 0,
    "saturate": 1,
    "zoom_blur": 1,
}


@pytest.fixture(scope="module")
def published():
    """The function ``corrupt`` of the published code."""
    found = importlib.util.find_spec("imagecorruptions")
    if found is None or not found.submodule_search_locations:
        pytest.skip("not run: needs requirements-reference.txt")
    root = Path(found.submodule_search_locations[0])
    # The package finds its images by a module of setuptools that new versions lack.
    stub = types.ModuleType("pkg_resources")
    stub.resource_filename = lambda package, name: str(root / name)  # type: ignore[attr-defined]
    sys.modules.setdefault("pkg_resources", stub)
    return importlib.import_module("imagecorruptions").corrupt


@pytest.fixture(scope="module")
def pictures():
    """Two smooth coloured images and one of noise, uint8[3, 224, 224, 3]."""
    rows, columns = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    waves = [np.sin(7 * rows + 3 * columns + phase) for phase in (0, 1, 2)]
    smooth = np.stack(waves, -1) * 100 + 128
    blocks = np.kron(np.random.default_rng(0).integers(0, 256, (28, 28, 3)), np.ones((8, 8, 1)))
    noise = np.random.default_rng(1).integers(0, 256, (_SIDE, _SIDE, 3))
    return np.stack([smooth, blocks, noise]).astype(np.uint8)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", sorted(_NAMES))
def test_what_is_not_random_is_as_published(published, pictures, name, severity):
    keys = image_keys(name, 0, 0, len(pictures))
    found = np.asarray(apply(name, keys, pictures.astype(np.float32) / 255, severity)) * 255
    for ours, picture in zip(found, pictures, strict=True):
        theirs = published(picture, corruption_name=name, severity=severity).astype(float)
        # The published code cuts values to integers.
        apart = np.minimum(np.abs(ours - theirs), np.abs(np.floor(ours + 1e-3) - theirs))
        assert apart.max() <= _NAMES[name] + 1e-3, f"{apart.max():.3f}, mean {apart.mean():.4f}"

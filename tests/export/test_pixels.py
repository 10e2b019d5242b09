"""Preprocessing in a program has the pixels of Pillow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from finetune_jax.data.images import INTERPOLATIONS, resize
from finetune_jax.data.preprocess import ImagePairPreprocess, ImagePreprocess
from finetune_jax.export.pixels import prepared, resized


def _images(height: int, width: int, *count: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (*count, height, width, 3), dtype=np.uint8)


def _program(**options: Any) -> Any:
    """`resized` with symbolic sizes."""
    b, h, w = export.symbolic_shape("b, h, w")
    shape = jax.ShapeDtypeStruct((b, h, w, 3), jnp.uint8)
    return export.export(jax.jit(functools.partial(resized, **options)))(shape)


def _require_pillow(program: Any, size: tuple[int, int], **options: Any) -> None:
    images = _images(*size, 2)
    expected = np.stack([resize(x, **options) for x in images])
    found = np.asarray(program.call(images))
    np.testing.assert_array_equal(found, expected, err_msg=f"{size} {options}")


def test_a_program_resizes_a_strip_as_pillow() -> None:
    options: dict[str, Any] = {"side": 8, "interpolation": "bicubic", "crop": 0.875}
    _require_pillow(_program(**options), (1, 300), **options)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop", [0.0, 0.875, 0.9, 1.0])
def test_a_program_resizes_images_of_any_size_as_pillow(interpolation: str, crop: float) -> None:
    rng = np.random.default_rng(round(crop * 1000) + len(interpolation))
    side = int(rng.choice([8, 17, 28, 32, 64]))
    options: dict[str, Any] = {"side": side, "interpolation": interpolation, "crop": crop}
    program = _program(**options)
    edges = [(side, side), (1, 1), (1, 300), (300, 1), (3 * side, side), (7 * side, 2 * side)]
    some = [(int(h), int(w)) for h, w in rng.integers(1, 160, (8, 2))]
    for size in (*edges, *some, (5, 900), (900, 3)):
        _require_pillow(program, size, **options)


def _preprocess(kind: type[ImagePreprocess]) -> ImagePreprocess:
    constants: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    return kind(size=8, interpolation="bilinear", crop=0.875, channels="bgr", **constants)


def test_a_program_prepares_pairs_of_images_as_the_artifact_does() -> None:
    preprocess = _preprocess(ImagePairPreprocess)
    images = _images(20, 13, 3, 2)
    ready = [preprocess.host({"image": a, "image2": b})["image"] for a, b in images]
    expected = preprocess.device({"image": np.stack(ready)})
    found = jax.jit(functools.partial(prepared, preprocess))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert found.shape == (6, 8, 8, 3)

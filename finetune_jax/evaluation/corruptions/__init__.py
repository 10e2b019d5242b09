"""Common corruptions of images (Hendrycks and Dietterich 2019, arXiv 1903.12261), in JAX.

All fifteen main ones and the four extra ones, at five severities, written anew from the published
construction, whose constants for CIFAR-10-C (32 pixels) and ImageNet-C (224) are kept; images of
another size take those of the nearer one, in pixels as they are. Three are made by libraries on the
host, of which two may be missing: `unavailable`. Scores are comparable between models, and close to
those on the published sets, which were drawn by other generators.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.evaluation.corruptions import blur, digital, host, noise, weather

SEVERITIES = (1, 2, 3, 4, 5)

Table = tuple[tuple[float, ...], ...]
"""Constants of the five severities."""

Change = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(key, f32[size, size, 3] in [0, 1], severity - 1) to f32[size, size, 3], not yet clipped."""

OnHost = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
"""(generator, f32[size, size, 3] in [0, 1], constants f64[k]) to the same, not yet clipped."""


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A corruption.

    Attributes:
      make: constants f64[5, k] and the image's side to the change of one image; None where a
        library does it on the host.
      small: constants of CIFAR-10-C.
      large: constants of ImageNet-C.
      extra: not among the fifteen that a mean is taken over.
      on_host: in place of `make`.
    """

    make: Callable[[np.ndarray, int], Change] | None
    small: Table
    large: Table
    extra: bool = False
    on_host: OnHost | None = None

    def table(self, size: int) -> np.ndarray:
        """Constants f64[5, k] for images of `size` pixels."""
        return np.array(self.small if size <= 128 else self.large, np.float64)


def _each(*values: float) -> Table:
    return tuple((value,) for value in values)


# From make_cifar_c.py and make_imagenet_c.py of github.com/hendrycks/robustness.
CORRUPTIONS = {
    "gaussian_noise": Corruption(
        noise.gaussian, _each(0.04, 0.06, 0.08, 0.09, 0.10), _each(0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    "shot_noise": Corruption(noise.shot, _each(500, 250, 100, 75, 50), _each(60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(
        noise.impulse, _each(0.01, 0.02, 0.03, 0.05, 0.07), _each(0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    # Radius and width of the anti-aliasing, pixels.
    "defocus_blur": Corruption(
        blur.defocus,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    # Blur, reach of a shuffle in pixels, rounds.
    "glass_blur": Corruption(
        blur.glass,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    # Radius and width, pixels.
    "motion_blur": Corruption(
        blur.motion,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    # First factor beyond the last, and step.
    "zoom_blur": Corruption(
        blur.zoom,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    # Mean, deviation, zoom, threshold, radius and width of the motion, share of the image.
    "snow": Corruption(
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    # Share of the image, share of the photograph, step between its pixels.
    "frost": Corruption(
        None,
        ((1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)),
        ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        on_host=host.frost,
    ),
    # Strength, decay of the roughness.
    "fog": Corruption(
        weather.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(
        digital.brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3), _each(0.1, 0.2, 0.3, 0.4, 0.5)
    ),
    "contrast": Corruption(
        digital.contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15), _each(0.4, 0.3, 0.2, 0.1, 0.05)
    ),
    # Strength, smoothness and shift of corners, pixels.
    "elastic_transform": Corruption(
        digital.elastic,
        ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
        (
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
    ),
    "pixelate": Corruption(
        digital.pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65), _each(0.6, 0.5, 0.4, 0.3, 0.25)
    ),
    "jpeg_compression": Corruption(
        None, _each(80, 65, 58, 50, 40), _each(25, 18, 15, 10, 7), on_host=host.jpeg
    ),
    "speckle_noise": Corruption(
        noise.speckle,
        _each(0.06, 0.1, 0.12, 0.16, 0.2),
        _each(0.15, 0.2, 0.35, 0.45, 0.6),
        extra=True,
    ),
    "gaussian_blur": Corruption(
        blur.gaussian, _each(0.4, 0.6, 0.7, 0.8, 1), _each(1, 2, 3, 4, 6), extra=True
    ),
    # Factor and offset of the saturation.
    "saturate": Corruption(
        digital.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        extra=True,
    ),
    # Mean, deviation, blur and threshold of noise, strength of water or blur of mud, mud or not.
    "spatter": Corruption(
        None,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        extra=True,
        on_host=host.spatter,
    ),
}


def unavailable() -> dict[str, str]:
    """What the corruptions need that cannot be made here, by name."""
    return {name: needs for name in CORRUPTIONS if (needs := host.lacking(name))}


@functools.cache
def compiled(name: str, size: int) -> Any:
    """(keys[b], f32[b, size, size, 3], severity - 1) to the same shape, all severities in one."""
    corruption = CORRUPTIONS[name]
    if corruption.make is None:
        raise ValueError(f"{name} is made on the host, it has nothing to compile")
    change = corruption.make(corruption.table(size), size)
    return jax.jit(
        lambda keys, images, level: jnp.clip(
            jax.vmap(change, in_axes=(0, 0, None))(keys, images, level), 0, 1
        )
    )


def image_keys(name: str, seed: int, first: int, count: int) -> jax.Array:
    """Keys [count] of images number `first` and following; the same for every severity."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def apply(name: str, keys: jax.Array, images: Any, severity: int) -> jax.Array:
    """Corrupts a batch.

    Args:
      name: of `CORRUPTIONS`.
      keys: PRNG keys [b], one per image.
      images: f32[b, size, size, 3] in [0, 1], red first.
      severity: 1 to 5.

    Returns:
      f32[b, size, size, 3] in [0, 1].

    Raises:
      UserError: it needs what is not installed, see `unavailable`.
    """
    if needs := host.lacking(name):
        raise UserError(f"{name} needs {needs}")
    size = images.shape[1]
    if change := CORRUPTIONS[name].on_host:
        row = CORRUPTIONS[name].table(size)[severity - 1]
        changed = [
            change(np.random.default_rng(np.asarray(jax.random.key_data(key))), image, row)
            for key, image in zip(keys, np.asarray(images, np.float32), strict=True)
        ]
        return jnp.clip(jnp.asarray(np.stack(changed), jnp.float32), 0, 1)
    return compiled(name, size)(keys, jnp.asarray(images, jnp.float32), severity - 1)


def corrupt(
    name: str, images: np.ndarray, severity: int, *, seed: int, first: int = 0
) -> np.ndarray:
    """Corrupts a batch of pictures as the published sets hold them, in 8 bits.

    Args:
      name: of `CORRUPTIONS`.
      images: uint8[b, size, size, 3], red first.
      severity: 1 to 5.
      seed: of the drawings.
      first: number of the first image in its split.

    Returns:
      uint8[b, size, size, 3]; values are cut off, not rounded, as the published ones are.
    """
    keys = image_keys(name, seed, first, len(images))
    changed = np.asarray(apply(name, keys, images.astype(np.float32) / 255, severity))
    # What is whole in 8 bits stays so: f32 may be a hair below.
    return np.floor(changed * 255 + 1e-3).astype(np.uint8)

"""Common corruptions of images (Hendrycks and Dietterich 2019, arXiv 1903.12261), in JAX.

The fifteen main corruptions and the four extra corruptions have five severities each. They are a
new implementation with the published constants for CIFAR-10-C (32 pixels) and ImageNet-C (224
pixels). Images of up to 128 pixels take the constants of CIFAR-10-C, larger images the constants of
ImageNet-C; lengths in pixels are not scaled. Libraries on the host make three corruptions, and
two of these libraries may be missing, see `unavailable`. Scores are comparable between models.
They are close to the scores on the published sets, whose random numbers are different.
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
from finetune_jax.evaluation.corruptions.base import Change, HostChange

SEVERITIES = (1, 2, 3, 4, 5)

Table = tuple[tuple[float, ...], ...]
"""Constants of the five severities."""


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A corruption, made either by JAX or by a library on the host.

    Attributes:
      make: function of the constants f64[5, k] of all severities and the side of the image in
        pixels to the function that corrupts one image; None for a corruption on the host.
      small: constants of CIFAR-10-C.
      large: constants of ImageNet-C.
      extra: whether the corruption is not one of the fifteen main corruptions.
      on_host: function that corrupts one image on the host; None for a corruption by JAX.
    """

    make: Callable[[np.ndarray, int], Change] | None
    small: Table
    large: Table
    extra: bool = False
    on_host: HostChange | None = None

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
    # Radius of the disk and width of the anti-aliasing, in pixels.
    "defocus_blur": Corruption(
        blur.defocus,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    # Width of the blur, largest distance of a swap in pixels, rounds of swaps.
    "glass_blur": Corruption(
        blur.glass,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    # Radius and width of the motion, in pixels.
    "motion_blur": Corruption(
        blur.motion,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    # Zoom factors go from 1 up to the first constant (excluded), in steps of the second.
    "zoom_blur": Corruption(
        blur.zoom,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    # Mean and deviation of the noise, zoom, threshold, radius and width of the motion, weight of
    # the image.
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
    # Weight of the image, weight of the photograph, step between the photograph's pixels.
    "frost": Corruption(
        None,
        ((1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)),
        ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        on_host=host.frost,
    ),
    # Strength, decay of the roughness of the fractal.
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
    # Strength and width of smoothing of the shifts, largest shift of corners, in pixels.
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
    # Mean, deviation, blur and threshold of the noise; strength of water or blur of mud; 1 for mud.
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
    """Returns what is missing for each corruption that is not available, by name."""
    return {name: needs for name in CORRUPTIONS if (needs := host.lacking(name))}


@functools.cache
def compiled(name: str, size: int) -> Callable[..., jax.Array]:
    """Returns the jitted function of (keys[b], images f32[b, size, size, 3], severity - 1).

    One program serves all severities. The function returns f32[b, size, size, 3] in [0, 1].
    """
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
    """Returns PRNG keys [count] of the images `first`, `first` + 1, …, equal for all severities."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def apply(name: str, keys: jax.Array, images: Any, severity: int) -> jax.Array:
    """Corrupts a batch.

    Args:
      name: name of the corruption in `CORRUPTIONS`.
      keys: PRNG keys [b], one per image.
      images: f32[b, size, size, 3] in [0, 1], red first.
      severity: 1 to 5.

    Returns:
      f32[b, size, size, 3] in [0, 1].

    Raises:
      UserError: the corruption needs something that is not installed, see `unavailable`.
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
    """Corrupts a batch of images in 8 bits, as the published sets hold images.

    Args:
      name: name of the corruption in `CORRUPTIONS`.
      images: uint8[b, size, size, 3], red first.
      severity: 1 to 5.
      seed: seed of the random numbers.
      first: position of the first image in its split.

    Returns:
      uint8[b, size, size, 3]. Values are truncated, not rounded, as in the published sets.
    """
    keys = image_keys(name, seed, first, len(images))
    changed = np.asarray(apply(name, keys, images.astype(np.float32) / 255, severity))
    # Rounding in f32 may put an integer slightly below itself; the offset keeps the integer.
    return np.floor(changed * 255 + 1e-3).astype(np.uint8)

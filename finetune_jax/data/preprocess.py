"""Deterministic preprocessing: what an artifact carries so that prediction equals training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.data.images import resize


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resize on the host in uint8, normalise on the device in f32.

    Attributes:
      size: side of the square image, in pixels.
      interpolation: ``nearest``, ``bilinear`` or ``bicubic``.
      mean: per RGB channel, of values in [0, 1].
      std: likewise, > 0.
    """

    size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def host(self, image: np.ndarray) -> np.ndarray:
        """uint8[height, width, 3] to uint8[size, size, 3]."""
        return resize(image, self.size, self.interpolation)

    def device(self, images: jax.Array) -> jax.Array:
        """uint8[batch, size, size, 3] to f32 of the same shape: (x / 255 - mean) / std."""
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return (images.astype(jnp.float32) / 255 - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_json`."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

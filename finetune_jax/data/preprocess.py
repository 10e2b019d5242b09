"""Deterministic preprocessing: what an artifact carries so that prediction equals training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.data.images import resize
from finetune_jax.models import Inputs


@dataclasses.dataclass(frozen=True)
class Preprocess(Inputs):
    """Resize, crop and order of colours on the host in uint8, normalise on the device in f32.

    The attributes are those of `finetune_jax.models.Inputs`, which a model brings with it.
    """

    def host(self, image: np.ndarray) -> np.ndarray:
        """uint8[height, width, 3] to uint8[size, size, 3]."""
        square = resize(image, self.size, self.interpolation, self.crop)
        return square[..., ::-1] if self.channels == "bgr" else square

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

"""Types of the functions that corrupt one image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

Change = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Function of (key, image f32[size, size, 3] in [0, 1], severity - 1) to the corrupted image
f32[size, size, 3], which is not clipped yet."""

HostChange = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
"""Function of (generator, image f32[size, size, 3] in [0, 1], constants f64[k] of the severity) to
the corrupted image f32[size, size, 3], which is not clipped yet."""

"""A Keras model with the interface of a torch module that the harness needs: hooks of layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


class KerasReference:
    """Wraps a functional Keras model with new random weights.

    Args:
      model: built model, without the activation after its logits.
      seed: seed of the weights; no weight stays zero or one.
    """

    def __init__(self, model: Any, seed: int = 0) -> None:
        self.model = model
        self._listeners: dict[str, Callable[..., None]] = {}
        generator = np.random.default_rng(seed)
        for variable in model.weights:
            noise = generator.normal(size=variable.shape)
            name = variable.path.rsplit("/", 1)[-1]
            if "kernel" in name:
                # A depthwise kernel's inputs are its window alone; [h, w, channels, 1].
                inputs = np.prod(variable.shape[:2] if "depthwise" in variable.path
                                 else variable.shape[:-1])  # fmt: skip
                noise = noise * inputs**-0.5
            elif name == "moving_variance":
                noise = 0.5 + generator.random(variable.shape)
            else:
                noise = 0.1 * noise + (name == "gamma")
            variable.assign(noise.astype(np.float32))

    def get_submodule(self, name: str) -> Any:
        """The layer `name`, whose output a hook can be registered for."""

        def register(listener: Callable[..., None]) -> Any:
            self._listeners[name] = listener
            return SimpleNamespace(remove=lambda: self._listeners.pop(name))

        self.model.get_layer(name)
        return SimpleNamespace(register_forward_hook=register)

    def __call__(self, x: np.ndarray) -> Any:
        import keras
        import torch

        names = list(self._listeners)
        outputs = [self.model.get_layer(name).output for name in names]
        every = keras.Model(self.model.inputs, [*outputs, self.model.outputs[0]])
        found = [torch.from_numpy(np.array(array)) for array in every([x], training=False)]
        for name, output in zip(names, found, strict=False):
            self._listeners[name](None, None, output)
        return found[-1]


def save_h5(reference: KerasReference, folder: Path) -> Path:
    """Saves the model and its weights in the format of Keras 1 and 2."""
    path = folder / "model.h5"
    reference.model.save(path)
    return path


def save_keras(reference: KerasReference, folder: Path) -> Path:
    """Saves the model and its weights in the format of Keras 3."""
    path = folder / "model.keras"
    reference.model.save(path)
    return path


KERAS = {"feed": lambda x: x, "turn": lambda stage, array: array, "export": False}
"""Options that a `Case` needs with a Keras model."""

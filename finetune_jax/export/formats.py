"""What a format of an exported model is; each format has a module of its name in this package."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune_jax.artifact import Artifact
from finetune_jax.errors import UserError, nearest

Batch = dict[str, np.ndarray]
"""Inputs that a user of an exported model has.

Of a model of images, ``image`` uint8[b, height, width, 3] in RGB (of pairs of images
uint8[b, 2, height, width, 3]); of a model of texts, ``input_ids``, ``attention_mask`` and
``token_type_ids`` i32[b, tokens] (of texts that are read apart i32[b, 2, tokens]).
"""

Outputs = Callable[[Batch], np.ndarray]
"""The outputs of a written model for a batch, before any softmax, as `Artifact.outputs` has."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What is exported.

    Attributes:
      artifact: the model, its task and its preprocessing.
      config: plain values of the config of the run; empty for an artifact without a run.
      names: the project whose names tensors get, such as ``timm``; empty for the usual one.
      result: content of the run's ``result.json``; empty for an artifact without a run.
      evaluation: what ``evaluate`` printed about the run; empty where it is not given.
    """

    artifact: Artifact
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    names: str = ""
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)


class Format(Protocol):
    """The functions of a format's module."""

    MERGES: bool
    """Whether deltas are always merged into the kernels of the model first."""

    KEEPS_DELTAS: bool
    """Whether deltas are never merged."""

    def require(self, model: Model) -> None:
        """Raises UserError, before anything is written, for a model that the format cannot hold."""

    def write(self, model: Model, folder: Path) -> None:
        """Writes the files of the format to an empty folder."""

    def opened(self, model: Model, folder: Path) -> Outputs:
        """The outputs of the model that was written, read from its files alone."""

    def library(self, model: Model) -> str:
        """The library that reads the folder, by the name that the hub has for it."""

    def usage(self, model: Model) -> str:
        """Python code of at most ten lines that reads the folder, for the model card."""


FORMATS = {
    "stablehlo": "a compiled program of jax.export with its weights beside it",
    "onnx": "an ONNX graph, preprocessing included",
    "safetensors": "the folder that timm or transformers opens",
    "orbax": "an Orbax checkpoint of the variables",
    "peft": "the adapter folder of peft, for a model with LoRA",
}
"""The formats by name, and what each one is."""


def format_of(name: str) -> Format:
    """The module of a format; UserError for a format without one."""
    if name not in FORMATS:
        raise UserError(
            f"--format={name}: expected one of {', '.join(FORMATS)}.{nearest(name, FORMATS)}"
        )
    module: Any = importlib.import_module(f"{__package__}.{name}")
    return module

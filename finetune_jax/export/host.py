"""Preprocessing on the host, for exported models that take prepared inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from finetune_jax.artifact import Artifact
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.export.formats import Batch, Outputs


def on_prepared(artifact: Artifact, outputs: Callable[[Batch], np.ndarray]) -> Outputs:
    """The outputs for a `Batch`, of a model that takes what `Preprocess.host` returns.

    Args:
      artifact: the exported model.
      outputs: function of a batch of results of `Preprocess.host`.
    """
    preprocess = artifact.preprocess
    if not isinstance(preprocess, ImagePreprocess):
        return outputs

    def prepared(batch: Batch) -> np.ndarray:
        images = batch["image"]
        rows = images if len(preprocess.columns) == 2 else images[:, None]
        examples = [dict(zip(preprocess.columns, row, strict=True)) for row in rows]
        return outputs({"image": np.stack([preprocess.host(x)["image"] for x in examples])})

    return prepared

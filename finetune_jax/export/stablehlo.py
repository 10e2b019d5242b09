"""A program of `jax.export`, which JAX alone runs, on CPUs, CUDA GPUs and TPUs.

The function is stored as StableHLO, a portable form that XLA keeps compatible (see the
documentation of `jax.export`). The batch has a symbolic size, and the weights are arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from safetensors.flax import load_file

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.data.text import TextPreprocess
from finetune_jax.export.description import describe
from finetune_jax.export.formats import Batch, Model, Outputs
from finetune_jax.export.pixels import prepared
from finetune_jax.files import write_json, write_text
from finetune_jax.pretrained.formats.safetensors_file import write_safetensors

MERGES, KEEPS_DELTAS = False, False
PROGRAM, WEIGHTS, DESCRIPTION = "model.stablehlo", "model.safetensors", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")


def require(model: Model) -> None:
    """Every model has a program."""
    del model


def write(model: Model, folder: Path) -> None:
    """Writes the program, its weights by ``params/…`` and ``batch_stats/…``, and a description."""
    artifact = model.artifact
    weights = {path: np.asarray(x) for path, x in tree.flatten(artifact.variables).items()}
    write_safetensors(folder / WEIGHTS, weights, {"format": "flax"})
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in weights.items()}
    exported = jax_export.export(jax.jit(_function(artifact)), platforms=PLATFORMS)(
        shapes, _inputs(artifact)
    )
    (folder / PROGRAM).write_bytes(exported.serialize())
    write_json(folder / DESCRIPTION, describe(artifact))
    if isinstance(artifact.preprocess, TextPreprocess):
        write_text(folder / "tokenizer.json", artifact.preprocess.fitted_tokenizer)


def opened(model: Model, folder: Path) -> Outputs:
    """The outputs of the program in a folder."""
    del model
    program = jax_export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    call, weights = jax.jit(program.call), load_file(folder / WEIGHTS)

    def outputs(batch: Batch) -> np.ndarray:
        return np.asarray(call(weights, batch)["outputs"])

    return outputs


def library(model: Model) -> str:
    """The library that reads the folder."""
    del model
    return "jax"


def usage(model: Model) -> str:
    """Code that runs the program with JAX alone."""
    if model.artifact.preprocess.kind == "text":
        names = ", ".join(f'"{name}": {name}' for name in model.artifact.preprocess.abstract(1))
        inputs = f"{{{names}}}"
    else:
        inputs = '{"image": images}'
    return f"""from jax import export
from safetensors.flax import load_file

program = export.deserialize(bytearray(open("{PROGRAM}", "rb").read()))
print(program.call(load_file("{WEIGHTS}"), {inputs}))"""


def _function(artifact: Artifact) -> Any:
    """Function of weights by path and raw inputs to the outputs and the numbers of the task."""
    preprocess, model, task = artifact.preprocess, artifact.model, artifact.task

    def function(weights: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, Any]:
        if isinstance(preprocess, ImagePreprocess):
            inputs = prepared(preprocess, batch["image"])
        else:
            inputs = preprocess.device(batch)
        variables = {"batch_stats": {}, **tree.unflatten(weights)}
        outputs = model.apply(variables, inputs)
        return {"outputs": outputs, **task.numbers(outputs)}

    return function


def _inputs(artifact: Artifact) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the raw inputs with symbolic sizes."""
    preprocess, known = artifact.preprocess, artifact.preprocess.abstract(1)
    if not isinstance(preprocess, ImagePreprocess):
        (batch,) = jax_export.symbolic_shape("b")
        return {
            name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in known.items()
        }
    batch, height, width = jax_export.symbolic_shape("b, height, width")
    views = (2,) if len(preprocess.columns) == 2 else ()
    return {"image": jax.ShapeDtypeStruct((batch, *views, height, width, 3), np.uint8)}

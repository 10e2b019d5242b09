"""The variables as an Orbax checkpoint, with the names that this package gives to leaves."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from finetune_jax.export.formats import Batch, Model, Outputs
from finetune_jax.export.host import on_prepared

MERGES, KEEPS_DELTAS = False, False
NAME = "variables"


def require(model: Model) -> None:
    """Every model has an Orbax checkpoint."""
    del model


def write(model: Model, folder: Path) -> None:
    """Writes ``variables/``, an Orbax checkpoint of ``{"params": …, "batch_stats": …}``."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / NAME).absolute(), model.artifact.variables)
    # Orbax writes the path of this machine into it, and needs the file on object stores alone.
    (folder / NAME / "commit_success.txt").unlink(missing_ok=True)


def opened(model: Model, folder: Path) -> Outputs:
    """The outputs of the model with the variables of the checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore((folder / NAME).absolute(), model.artifact.variables)
    apply = jax.jit(model.artifact.model.apply)

    def outputs(batch: Batch) -> np.ndarray:
        return np.asarray(apply(variables, model.artifact.preprocess.device(batch)))

    return on_prepared(model.artifact, outputs)


def library(model: Model) -> str:
    """The library that reads the folder."""
    del model
    return "jax"


def usage(model: Model) -> str:
    """Code that restores the variables with Orbax alone."""
    del model
    return (
        "import orbax.checkpoint as ocp\n\n"
        "variables = ocp.StandardCheckpointer().restore(FOLDER + '/variables')"
    )

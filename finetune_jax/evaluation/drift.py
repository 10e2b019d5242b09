"""Distance of features and parameters after fine-tuning to their values at the start."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.base_variables import load_variables
from finetune_jax.deltas import Adapted, merge, unmergeable
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.evaluation.scores import forward_all
from finetune_jax.evaluation.step import make_forward
from finetune_jax.quantization import dequantize


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights at the start of a run.

    Attributes:
      variables: variables of the model without deltas; leaves that the file lacks are random.
      loaded: leaf paths, with their collection, that come from the weight file.
    """

    variables: dict[str, Any]
    loaded: frozenset[str]


def load_start(evaluator: Evaluator, path: str = "") -> Start:
    """Loads the weights at the start of the evaluator's run.

    Args:
      evaluator: evaluator of a run.
      path: replaces the run's ``pretrained.path``; empty keeps it.

    Raises:
      UserError: the run did not start from a weight file, or the file differs from that file.
    """
    config = evaluator.config.copy_and_resolve_references()
    if path:
        config.pretrained.path = path
    if evaluator.artifact is None or not config.pretrained.path:
        raise UserError(
            "there is no base to compare with: expected a run that started from a weight file "
            "(pretrained.path), found "
            + (
                "a weight file itself"
                if evaluator.artifact is None
                else "a run from random weights"
            )
        )
    variables, manifest = load_variables(dataclasses.replace(evaluator.setup, config=config))
    expected = evaluator.artifact.card["base"].get("sha256")
    if manifest.get("sha256") != expected:
        raise UserError(
            f"{config.pretrained.path} is not the file that the run started from: expected sha256 "
            f"{expected}, found {manifest.get('sha256')}; give it with --base"
        )
    rows = manifest["rows"]
    loaded = {r["leaf"] for r in rows if r["leaf"] and r["decision"] != "reinitialised"}
    return Start(variables, frozenset(loaded))


def feature_drift(evaluator: Evaluator, start: Start, split: str) -> dict[str, float]:
    """Distance of the features f(x) that enter the head to the features f0(x) at the start.

    Returns:
      Means over the examples of a split: ``feature_norm_base`` |f0(x)|, ``feature_drift``
      |f(x) - f0(x)|, and ``feature_drift_relative`` |f(x) - f0(x)| / |f0(x)|, Euclidean norms.
    """
    prepare = evaluator.preprocess.device
    tuned_features = make_forward(evaluator.model, prepare, stop="head")
    first_features = make_forward(evaluator.setup.model, prepare, stop="head")

    @jax.jit
    def measure(tuned: Any, first: Any, batch: Any) -> jax.Array:
        f, f0 = tuned_features(tuned, batch), first_features(first, batch)
        rows = (v.reshape(evaluator.batch_size, -1) for v in (f - f0, f0))
        return jax.numpy.stack([jax.numpy.linalg.norm(v, axis=-1) for v in rows], -1)

    norms = forward_all(
        lambda batch: measure(evaluator.variables, start.variables, batch),
        evaluator.examples(split),
        evaluator.encode,
        batch_size=evaluator.batch_size,
        place=evaluator.place,
    )
    drift, norm = norms.astype(np.float64).T
    return {
        "feature_norm_base": float(norm.mean()),
        "feature_drift": float(drift.mean()),
        "feature_drift_relative": float((drift / np.maximum(norm, 1e-12)).mean()),
    }


def parameter_movement(evaluator: Evaluator, start: Start) -> list[dict[str, Any]]:
    """Distance of the parameters w of each stage to the parameters w0 at the start.

    Deltas that can be merged are counted as the change of the kernels that they are merged into.
    Leaves that do not come from the weight file are not compared.

    Returns:
      A dict per stage, in forward order: ``stage``; ``leaves``, the number of compared leaves;
      ``norm`` |w0|; ``moved`` |w - w0|; ``relative`` moved / norm (nan for a norm of 0); ``new``,
      the number of leaves that the weight file did not give; ``beside``, the number of leaves of
      deltas that cannot be merged.
    """
    model, variables = evaluator.model, evaluator.variables
    if isinstance(model, Adapted) and not unmergeable(model.model, model.deltas):
        variables, _ = merge(model, variables)
    params = dequantize(variables["params"])
    now, then = tree.flatten(params), tree.flatten(start.variables["params"])
    rows: list[dict[str, Any]] = []
    for stage in evaluator.setup.model.stages:
        mine = [p for p in now if p.split("/")[0] == stage]
        shared = [p for p in mine if p in then and f"params/{p}" in start.loaded]
        gaps = (np.asarray(now[p], np.float64) - np.asarray(then[p], np.float64) for p in shared)
        moved = float(np.sqrt(sum(float((g**2).sum()) for g in gaps)))
        starts = (np.asarray(then[p], np.float64) for p in shared)
        norm = float(np.sqrt(sum(float((w**2).sum()) for w in starts)))
        rows.append(
            {
                "stage": stage,
                "leaves": len(shared),
                "norm": norm,
                "moved": moved,
                "relative": moved / norm if norm else float("nan"),
                "new": sum(p in then for p in mine) - len(shared),
                "beside": sum(p not in then for p in mine),
            }
        )
    return rows

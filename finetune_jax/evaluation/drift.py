"""How far fine-tuning moved features and parameters from the weight file it started from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.deltas import Adapted, merge, unmergeable
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.evaluation.scores import forward_all
from finetune_jax.evaluation.step import make_forward
from finetune_jax.setup import load_variables


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights a run started from.

    Attributes:
      variables: of the model without deltas; what the file lacks is random.
      loaded: leaf paths, with their collection, that come from the file.
    """

    variables: dict[str, Any]
    loaded: frozenset[str]


def load_start(evaluator: Evaluator, path: str = "") -> Start:
    """Loads the weight file of a evaluator's run.

    Args:
      evaluator: of a run.
      path: in place of the run's ``pretrained.path``.

    Raises:
      UserError: no base, or a file that is not the one the run started from.
    """
    config = evaluator.config.copy_and_resolve_references()
    if path:
        config.pretrained.path = path
    if evaluator.artifact is None or not config.pretrained.path:
        raise UserError(
            "there is no base to compare with: expected a run that started from a weight file "
            "(pretrained.path), found "
            + ("a weight file itself" if evaluator.artifact is None else "one trained from scratch")
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


def feature_drift(evaluator: Evaluator, base: Start, split: str) -> dict[str, float]:
    """Distance of features to those of the base, of the same examples.

    Returns:
      Means over the split: ``feature_norm_base`` |f0(x)|, ``feature_drift`` |f(x) - f0(x)|, and
      ``feature_drift_relative`` |f(x) - f0(x)| / |f0(x)|, Euclidean norms of what enters the head.
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
        lambda batch: measure(evaluator.variables, base.variables, batch),
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


def parameter_movement(evaluator: Evaluator, base: Start) -> list[dict[str, Any]]:
    """How far each stage moved, one dict per stage in forward order.

    Deltas that a kernel can express are counted as the change they make to it. Leaves that the
    weight file did not give have no start to be compared with.

    Returns:
      ``stage``; ``leaves`` compared; ``norm`` |w0|; ``moved`` |w - w0|; ``relative`` moved / norm
      (nan for a norm of 0); ``new`` leaves without a start, ``beside`` those of deltas that could
      not be folded in.
    """
    model, variables = evaluator.model, evaluator.variables
    if isinstance(model, Adapted) and not unmergeable(model.model, model.deltas):
        variables, _ = merge(model, variables)
    now, then = tree.flatten(variables["params"]), tree.flatten(base.variables["params"])
    rows = []
    for stage in evaluator.setup.model.stages:
        mine = [p for p in now if p.split("/")[0] == stage]
        shared = [p for p in mine if p in then and f"params/{p}" in base.loaded]
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

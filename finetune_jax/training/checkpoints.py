"""Orbax checkpoints of what may differ from the base: asynchronous, last n and best by a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.schemes import Plan, difference
from finetune_jax.training.state import State


class Checkpoints:
    """The ``checkpoints/`` folder of one run.

    Args:
      folder: created when absent.
      plan: saved beside the state; another plan refuses to restore.
      base_fingerprint: of the frozen half, likewise.
      keep_last: number of latest checkpoints to keep.
      keep_best: number of best checkpoints to keep.
      metric: validation metric that orders them, higher is better (``loss``: lower is).
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        base_fingerprint: str,
        *,
        keep_last: int = 1,
        keep_best: int = 1,
        metric: str = "accuracy",
    ) -> None:
        self._plan = plan
        self._base_fingerprint = base_fingerprint
        # A checkpoint taken between two evaluations has no score and never counts as best.
        sign = -1.0 if metric == "loss" else 1.0
        best = keep.BestN(
            get_metric_fn=lambda metrics: sign * metrics[metric],
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep.AnyPreservationPolicy([keep.LatestN(keep_last), best]),
                best_fn=lambda metrics: sign * metrics[metric],
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the best score."""
        return self._manager.best_step()

    def save(
        self, state: State, data_state: dict[str, Any], metrics: dict[str, float] | None = None
    ) -> None:
        """Starts writing; returns before it is done. A half-written folder is never `latest`."""
        meta = {
            "plan": self._plan.to_json(),
            "base_fingerprint": self._base_fingerprint,
            "data": data_state,
        }
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
            metrics=metrics,
        )

    def restore(self, target: State, step: int | None = None) -> tuple[State, dict[str, Any]]:
        """Returns (state, data state) of a step, the latest by default.

        Args:
          target: abstract or concrete state giving structure, shapes, dtypes and shardings.
          step: which checkpoint.

        Raises:
          UserError: written under another plan or over another base, with the difference.
        """
        step = self.latest_step if step is None else step
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = meta["meta"]
        saved, current = meta["plan"], self._plan.to_json()
        if saved["hash"] != current["hash"]:
            raise UserError(
                f"the checkpoint at step {step} was written under another plan and is left as it "
                f"is:\n{difference(saved, current)}\nuse another --workdir, or the old scheme"
            )
        if meta["base_fingerprint"] != self._base_fingerprint:
            raise UserError(
                f"the checkpoint at step {step} was trained over other frozen weights (fingerprint "
                f"{meta['base_fingerprint'][:12]}, now {self._base_fingerprint[:12]}): has the "
                f"pretrained file changed?"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        self._check_shapes(step, abstract)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return restored["state"], meta["data"]

    def _check_shapes(self, step: int, abstract: State) -> None:
        # Orbax casts dtypes silently, and one of its paths hands back saved shapes.
        saved = self._manager.item_metadata(step)["state"]
        saved_leaves = jax.tree_util.tree_leaves_with_path(saved)
        shapes = {jax.tree_util.keystr(p): tuple(m.shape) for p, m in saved_leaves}
        wanted = jax.tree_util.tree_leaves_with_path(abstract.params)
        for path, leaf in wanted:
            name = "['params']" + jax.tree_util.keystr(path)
            if name in shapes and shapes[name] != tuple(leaf.shape):
                raise UserError(
                    f"checkpoint leaf {name}: expected shape {tuple(leaf.shape)}, found "
                    f"{shapes[name]}"
                )

    def wait(self) -> None:
        """Blocks until pending writes are complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending writes and releases the folder."""
        self._manager.close()


def base_fingerprint(base: Any) -> str:
    """Fingerprint of the frozen half, parameters and kept statistics."""
    return tree.fingerprint(jax.tree.map(np.asarray, {"params": base.params, "stats": base.stats}))

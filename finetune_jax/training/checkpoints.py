"""Orbax checkpoints of what may differ from the base: asynchronous, last n and best by a metric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from finetune_jax.errors import UserError
from finetune_jax.schemes import Plan, difference
from finetune_jax.training.state import State

# Orbax warns of every checkpoint between two evaluations, which have no score by intention.
logging.getLogger("absl").addFilter(lambda r: "did not provide metrics" not in r.getMessage())


class Checkpoints:
    """The ``checkpoints/`` folder of one run.

    A checkpoint holds the state of the phase it was taken in, and ``modified``: leaves that are
    frozen in this phase and yet not the weight file's, because an earlier phase trained them or a
    delta drew them.

    Args:
      folder: created when absent.
      plans: of the phases, saved beside the state; other plans refuse to restore.
      keep_last: number of latest checkpoints to keep.
      keep_best: number of best checkpoints to keep.
      metric: validation metric that orders them.
      better: ``max`` or ``min`` of it.
    """

    def __init__(
        self,
        folder: Path,
        plans: Sequence[Plan],
        *,
        keep_last: int = 1,
        keep_best: int = 1,
        metric: str = "accuracy",
        better: str = "max",
    ) -> None:
        self._plans = tuple(plans)
        # A checkpoint taken between two evaluations has no score and never counts as best.
        sign = -1.0 if better == "min" else 1.0
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
        self,
        state: State,
        modified: dict[str, Any],
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts writing; returns before it is done. A half-written folder is never `latest`.

        Args:
          state: of the current phase.
          modified: flat leaves by path, see the class.
          meta: JSON object with at least ``phase`` (its number) and ``base_fingerprint``.
          metrics: validation scores, if there are any at this step.
        """
        meta = {**meta, "plan": self._plans[meta["phase"]].to_json()}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({"state": state, "settled": modified}),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=metrics,
        )

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """What `save` was given as `meta` at a step, the latest by default.

        Raises:
          UserError: written under another plan, with the difference.
        """
        step = self.latest_step if step is None else step
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = meta["meta"]
        number = meta["phase"]
        current = self._plans[min(number, len(self._plans) - 1)].to_json()
        saved = meta.pop("plan")
        if number >= len(self._plans) or saved["hash"] != current["hash"]:
            raise UserError(
                f"the checkpoint at step {step} (phase {number}) was written under another plan "
                f"and is left as it is:\n{difference(saved, current)}\n"
                f"use another --workdir, or the old scheme"
            )
        return meta

    def restore(
        self,
        target: State,
        modified: dict[str, Any],
        base_fingerprint: str,
        step: int | None = None,
    ) -> tuple[State, dict[str, Any]]:
        """Returns (state, modified) of a step, the latest by default.

        Args:
          target: abstract or concrete state giving structure, shapes, dtypes and shardings.
          modified: likewise.
          base_fingerprint: of the frozen leaves that are the weight file's.
          step: which checkpoint.

        Raises:
          UserError: written under another plan or over another base, with the difference.
        """
        step = self.latest_step if step is None else step
        saved = self.read_meta(step)["base_fingerprint"]
        if saved != base_fingerprint:
            raise UserError(
                f"the checkpoint at step {step} was trained over other frozen weights (fingerprint "
                f"{saved[:12]}, now {base_fingerprint[:12]}): has the pretrained file changed?"
            )
        abstract = jax.tree.map(
            ocp.utils.to_shape_dtype_struct, {"state": target, "settled": modified}
        )
        self._check(step, abstract)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )["state"]
        return restored["state"], restored["settled"]

    def _check(self, step: int, abstract: dict[str, Any]) -> None:
        # Orbax casts dtypes silently, and one of its paths hands back saved shapes.
        saved = {
            _name(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                self._manager.item_metadata(step)["state"]
            )
        }
        wrong = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
            found = saved.get(_name(path))
            # PRNG keys are saved as what they are made of.
            if found is None or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue
            if (tuple(found.shape), found.dtype) != (tuple(leaf.shape), leaf.dtype):
                wrong.append(
                    f"{_name(path)}: expected {leaf.dtype}{list(leaf.shape)}, found "
                    f"{found.dtype}{list(found.shape)}"
                )
        if wrong:
            raise UserError(f"the checkpoint at step {step} does not fit: {'; '.join(wrong[:8])}")

    def wait(self) -> None:
        """Blocks until pending writes are complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending writes and releases the folder."""
        self._manager.close()


def _name(path: Any) -> str:
    """The keys of a pytree path, whatever kinds of node they are of."""
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(map(str, keys))

"""Orbax checkpoints of all leaves that may differ from the weight file, written asynchronously.

The latest checkpoints and the best checkpoints by a metric are kept.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from finetune_jax.errors import UserError
from finetune_jax.memory import return_freed_memory
from finetune_jax.schemes import Plan, difference
from finetune_jax.training import orbax_memory
from finetune_jax.training.checkpoint_folder import set_damaged_aside
from finetune_jax.training.checkpoint_integrity import (
    is_prng_key,
    leaf_name,
    one_line,
    require_content,
    require_meta,
    seal_meta,
)
from finetune_jax.training.state import State

# Orbax warns about every checkpoint without a score, which checkpoints between two evaluations do
# not have, and about every save that waits for more than a second for the save before.
_EXPECTED = re.compile("did not provide metrics|Waiting for previous save to complete took")
logging.getLogger("absl").addFilter(lambda r: not _EXPECTED.search(r.getMessage()))

orbax_memory.apply()


class OtherPlan(UserError):
    """Raised for a checkpoint of another plan.

    Attributes:
      meta: the `meta` of the checkpoint, see `Checkpoints.save`.
    """

    def __init__(self, text: str, meta: dict[str, Any]) -> None:
        super().__init__(text)
        self.meta = meta


class Checkpoints:
    """The ``checkpoints/`` folder of one run.

    A checkpoint holds the state of the phase during which it was taken, and the modified leaves:
    leaves that are frozen in this phase but do not hold the values of the weight file, because an
    earlier phase trained them or a delta drew them.

    Args:
      folder: folder of the checkpoints, created when absent.
      plans: plans of the phases. The plan of its phase is saved with every checkpoint, and a
        checkpoint of another plan is not restored.
      keep_last: number of latest checkpoints to keep.
      keep_best: number of best checkpoints to keep.
      metric: validation metric that decides which checkpoints are best.
      better: ``max`` or ``min``: whether a higher or a lower metric is better.

    Raises:
      UserError: the folder holds checkpoints and all are damaged; for damaged checkpoints beside
        whole ones see `set_damaged_aside`.
    """

    def __init__(
        self,
        folder: Path,
        plans: Sequence[Plan],
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        metric: str = "accuracy",
        better: str = "max",
    ) -> None:
        self._plans = tuple(plans)
        self._folder = folder.absolute()
        set_damaged_aside(self._folder)
        # A checkpoint taken between two evaluations has no score and never counts as best.
        sign = -1.0 if better == "min" else 1.0
        best = keep.BestN(
            get_metric_fn=lambda metrics: sign * metrics[metric],
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        try:
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=keep.AnyPreservationPolicy([keep.LatestN(keep_last), best]),
                    best_fn=lambda metrics: sign * metrics[metric],
                    # Otherwise unfinished checkpoints of a killed run would stay on the disk.
                    cleanup_tmp_directories=True,
                ),
            )
        # Orbax reads the metrics of all steps, and raises any exception for damaged files.
        except Exception as error:
            raise UserError(f"{self._folder}: cannot be opened: {one_line(error)}") from error

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None without a checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the best score; None if no checkpoint has a score."""
        return self._manager.best_step()

    def save(
        self,
        state: State,
        modified: dict[str, Any],
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint and returns before it is complete.

        An incomplete checkpoint is never the `latest_step`.

        Args:
          state: state of the current phase.
          modified: modified leaves by path, see the class.
          meta: JSON object with at least ``phase`` (number of the phase) and ``base_fingerprint``.
          metrics: validation scores, if the run was evaluated at this step.
        """
        # "settled" is the name of the modified leaves in the files of all versions.
        content = {"state": state, "settled": modified}
        meta = {**meta, "plan": self._plans[meta["phase"]].to_json()}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(content),
                meta=ocp.args.JsonSave(seal_meta(meta, content, metrics)),
            ),
            metrics=metrics,
        )
        return_freed_memory()

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """Returns the `meta` that `save` was given at a step, the latest step by default.

        Raises:
          UserError: the checkpoint is damaged.
          OtherPlan: the checkpoint has another plan; the message shows the difference.
        """
        step = self._step(step)
        try:
            meta = require_meta(self._folder / str(step))
        except UserError as error:
            raise UserError(f"{error}; {self._way_on(step)}") from None
        number = meta["phase"]
        plan = self._plans[min(number, len(self._plans) - 1)].to_json()
        saved = meta.pop("plan")
        if number >= len(self._plans) or saved["hash"] != plan["hash"]:
            raise OtherPlan(
                f"the checkpoint at step {step} (phase {number}) was written under another plan "
                f"and is left as it is:\n{difference(saved, plan)}\n"
                f"use another --workdir, or the old scheme",
                meta,
            )
        return meta

    def restore(
        self,
        target: State,
        modified: dict[str, Any],
        base_fingerprint: str,
        step: int | None = None,
    ) -> tuple[State, dict[str, Any]]:
        """Returns (state, modified leaves) of a step, the latest step by default.

        Args:
          target: abstract or concrete state that gives structure, shapes, dtypes and shardings.
          modified: abstract or concrete modified leaves, as for `target`.
          base_fingerprint: fingerprint of the frozen leaves that hold the values of the weight
            file.
          step: step of the checkpoint.

        Raises:
          UserError: the checkpoint is damaged, or has another plan, other frozen weights, or leaves
            of another shape or dtype; the message shows the difference.
        """
        step = self._step(step)
        meta = self.read_meta(step)
        saved = meta["base_fingerprint"]
        if saved != base_fingerprint:
            raise UserError(
                f"the checkpoint at step {step} was trained over other frozen weights (fingerprint "
                f"{saved[:12]}, now {base_fingerprint[:12]}): has the pretrained file changed?"
            )
        abstract = jax.tree.map(
            ocp.utils.to_shape_dtype_struct, {"state": target, "settled": modified}
        )
        folder = self._folder / str(step)
        try:
            self._check(step, abstract)
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
            restored = jax.tree.map(_as_key, abstract, restored)
        except UserError:
            raise
        # Orbax and TensorStore raise any exception for a damaged file.
        except Exception as error:
            reason = f"{folder}: cannot be restored: {one_line(error)}; {self._way_on(step)}"
            raise UserError(reason) from error
        try:
            require_content(restored, meta, str(folder))
        except UserError as error:
            raise UserError(f"{error}; {self._way_on(step)}") from None
        return restored["state"], restored["settled"]

    def _way_on(self, step: int) -> str:
        """What a user can do about a damaged checkpoint."""
        left = [str(s) for s in self._manager.all_steps() if s != step]
        then = (
            f"from the checkpoints that are left: {', '.join(left)}" if left else "from the start"
        )
        return f"move this checkpoint away and repeat the command, which then goes on {then}"

    def _step(self, step: int | None) -> int:
        """`step`, or the latest step for None."""
        found = self.latest_step if step is None else step
        assert found is not None, "there is no checkpoint"
        return found

    def _check(self, step: int, abstract: dict[str, Any]) -> None:
        """Raises UserError if a saved leaf has another shape or dtype than expected."""
        # Orbax casts dtypes silently, and in some cases returns the saved shape.
        saved = {
            leaf_name(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                self._manager.item_metadata(step)["state"]
            )
        }
        wrong = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
            found = saved.get(leaf_name(path))
            # PRNG keys are saved as their raw data, which has another shape and dtype.
            if found is None or is_prng_key(leaf):
                continue
            if (tuple(found.shape), found.dtype) != (tuple(leaf.shape), leaf.dtype):
                wrong.append(
                    f"{leaf_name(path)}: expected {leaf.dtype}{list(leaf.shape)}, found "
                    f"{found.dtype}{list(found.shape)}"
                )
        if wrong:
            raise UserError(f"the checkpoint at step {step} does not fit: {'; '.join(wrong[:8])}")

    def wait(self) -> None:
        """Blocks until pending writes are complete."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error, this process must not wait for the others, which wait for this process.
        if error is None:
            self.close()
        elif jax.process_count() == 1:
            try:
                self.close()
            except Exception as another:  # the first error says why the run ends
                error.add_note(f"closing the checkpoints: {one_line(another)}")

    def close(self) -> None:
        """Waits for pending writes and releases the folder."""
        self._manager.close()


def _as_key(target: jax.ShapeDtypeStruct, leaf: jax.Array) -> jax.Array:
    """A restored leaf, as a PRNG key where a key is expected.

    Without the file in which Orbax notes what kind of key it was, Orbax gives its raw data.
    """
    if not is_prng_key(target) or is_prng_key(leaf):
        return leaf
    return jax.device_put(jax.random.wrap_key_data(leaf), target.sharding)

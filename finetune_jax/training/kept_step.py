"""The folder ``nonfinite/step_N`` of a run: the batch and the state of a bad step, for `replay`.

``batch.npz`` has the arrays of the host's batch by name, ``state.safetensors`` the leaves of the
state before the step and the modified leaves, and ``step.json`` all other values, among them the
numbers and the names of the examples. In a run of several processes, each process keeps the rows of
the batch that it reads itself.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.data.examples import Examples
from finetune_jax.data.naming import example_name
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, write_json
from finetune_jax.hosts import is_primary
from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.formats.safetensors_file import write_safetensors
from finetune_jax.training.state import State

FOLDER = "nonfinite"
_MOST_SKIPPED = 20  # number of skipped steps whose batches are kept


@dataclasses.dataclass(frozen=True)
class KeptStep:
    """A step that was kept.

    Attributes:
      about: content of ``step.json``: ``step``, ``phase``, ``start`` and ``steps`` (of the phase),
        ``cached``, ``problem``, ``policy``, ``task``, ``indices``, ``examples`` (their names) and
        ``key`` (data of the PRNG key); ``key`` is missing where no state was kept.
      batch: arrays of the batch by leaf path.
      state: leaves of the state by path, such as ``params/head/kernel`` and ``hyper/leaf_lr/…``,
        and modified leaves under ``modified/``.
    """

    about: dict[str, Any]
    batch: dict[str, np.ndarray]
    state: dict[str, np.ndarray]


def keep_step(
    folder: Path,
    about: dict[str, Any],
    batch: dict[str, Any],
    state: State | None,
    modified: dict[str, Any],
) -> str:
    """Writes a step and returns a text that says where, or why the step could not be kept.

    Args:
      folder: folder of the run.
      about: see `KeptStep`, without ``key``.
      batch: batch on the host.
      state: state before the step; None keeps the batch alone. All processes must call this
        function where a leaf of the state is sharded over several.
      modified: modified leaves by path, see `Checkpoints`.
    """
    leaves: dict[str, np.ndarray] = {}
    if state is not None:
        about = {**about, "key": np.asarray(jax.random.key_data(state.key)).tolist()}
        without_key = dataclasses.replace(state, key=jnp.zeros(()))
        for path, leaf in jax.tree_util.tree_leaves_with_path(without_key):
            leaves[tree.key_path(path)] = np.ascontiguousarray(tree.on_host(leaf))
        for name, leaf in modified.items():
            leaves[f"modified/{name}"] = np.ascontiguousarray(tree.on_host(leaf))
    where = folder / FOLDER / f"step_{about['step']}"
    if not is_primary():
        return f"kept in {where}"
    try:
        if state is None and len([*(folder / FOLDER).glob("step_*")]) >= _MOST_SKIPPED:
            return f"not kept, because {_MOST_SKIPPED} skipped steps are kept already"
        where.mkdir(parents=True, exist_ok=True)
        (where / "state.safetensors").unlink(missing_ok=True)
        arrays: dict[str, Any] = {n: _plain(x) for n, x in tree.flatten(batch).items()}
        np.savez(where / "batch.npz", **arrays)
        if leaves:
            write_safetensors(where / "state.safetensors", leaves, {})
        write_json(where / "step.json", about)
    except OSError as error:
        return f"batch and state could not be kept in {where}: {error.strerror}"
    return f"batch and state are kept in {where}" if leaves else f"batch kept in {where}"


def read_step(folder: Path, step: int | None = None) -> KeptStep:
    """Reads a step that `keep_step` has written.

    Args:
      folder: folder of the run.
      step: number of the step; None takes the latest one.

    Raises:
      UserError: no such step was kept, or its files are damaged.
    """
    found = sorted(
        int(path.name.removeprefix("step_"))
        for path in (folder / FOLDER).glob("step_*")
        if path.name.removeprefix("step_").isdigit()
    )
    if not found:
        raise UserError(f"{folder / FOLDER}: no step was kept; bad steps of a run are kept there")
    if step is not None and step not in found:
        raise UserError(f"--step={step}: not kept; kept are {', '.join(map(str, found))}")
    where = folder / FOLDER / f"step_{found[-1] if step is None else step}"
    about = read_json(where / "step.json")
    try:
        with np.load(where / "batch.npz", allow_pickle=False) as file:
            batch = {name: file[name] for name in file.files}
    except Exception as error:  # NumPy and zipfile each raise errors of their own
        raise UserError(f"{where / 'batch.npz'}: damaged: {error}") from None
    state = where / "state.safetensors"
    if not state.is_file():
        return KeptStep(about, batch, {})
    with open_weights(state) as weights:
        return KeptStep(about, batch, {name: weights.read(name) for name in weights.names()})


def names_of(examples: Examples, indices: np.ndarray) -> list[str]:
    """A name for each example: the file of an image, or the number in the split.

    Args:
      examples: the split as its source reads it.
      indices: numbers i64[n] of examples; numbers of other views are of the same examples.
    """
    return [example_name(examples, int(index) % len(examples)) for index in indices]


def _plain(array: Any) -> np.ndarray:
    """An array that a .npz file holds without a pickle: bfloat16 becomes float32."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "V" else array

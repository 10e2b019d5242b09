"""Cached activations on disk: one folder per split, in a parent folder of bounded size.

A folder holds the activations as an ArrayRecord file of one record per example and view, the
targets as ``targets.npz``, and ``meta.json``. It is written under a temporary name and renamed when
complete, so that no reader sees a part of it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax.files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class ActivationFolder:
    """Activations of one split in a folder.

    Attributes:
      path: the folder; its name is a hash of all that the activations depend on.
      activation: shape structs of one input's activation, a tree of arrays.
      inputs: number of inputs to the model per example.
    """

    path: Path
    activation: Any
    inputs: int

    @property
    def exists(self) -> bool:
        """Whether the folder is there and complete."""
        return (self.path / "meta.json").is_file()

    def mark_used(self) -> None:
        """Makes the folder the one that `make_room` removes last."""
        os.utime(self.path / "meta.json")

    def write(
        self,
        batches: Iterable[tuple[int, Any]],
        targets: dict[str, np.ndarray],
        meta: dict[str, Any],
    ) -> None:
        """Writes the folder, unless another run has written it in the meantime.

        Args:
          batches: pairs of the number of the first example, and activations: a tree of arrays
            [examples, inputs, …].
          targets: arrays [examples, …] by name, complete once `batches` is exhausted.
          meta: JSON object with at least ``bytes``.
        """
        from array_record.python import array_record_module

        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=".half-", dir=self.path.parent))
        try:
            writer = array_record_module.ArrayRecordWriter(
                str(half / "activations"), "group_size:1"
            )
            for _, values in batches:
                leaves = jax.tree.leaves(values)
                for number in range(len(leaves[0])):
                    parts = (np.ascontiguousarray(x[number]).tobytes() for x in leaves)
                    writer.write(b"".join(parts))
            writer.close()
            # The stubs of NumPy take a name in `targets` for the option `allow_pickle`.
            np.savez(half / "targets.npz", **targets)  # type: ignore[arg-type]
            write_json(half / "meta.json", meta)
            try:
                half.rename(self.path)
            except OSError:  # another run was faster
                if not self.exists:
                    raise
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def targets(self) -> dict[str, np.ndarray]:
        """Returns the targets of all examples, arrays [examples, …] by name."""
        return dict(np.load(self.path / "targets.npz"))

    def reader(self) -> Callable[[np.ndarray], Any]:
        """Returns the function from record numbers to activations.

        Its result is a tree of arrays [records * inputs, …].
        """
        from array_record.python import array_record_data_source

        source = array_record_data_source.ArrayRecordDataSource(str(self.path / "activations"))
        leaves, structure = jax.tree.flatten(self.activation)
        sizes = [self.inputs * math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves]
        starts = np.cumsum([0, *sizes])

        def read(indices: np.ndarray) -> Any:
            records = source.__getitems__([int(i) for i in indices])
            parts = [
                np.frombuffer(b"".join(r[begin : begin + n] for r in records), x.dtype)
                for begin, n, x in zip(starts, sizes, leaves, strict=False)
            ]
            shaped = [p.reshape(-1, *x.shape) for p, x in zip(parts, leaves, strict=True)]
            return jax.tree.unflatten(structure, shaped)

        return read


def make_room(parent: Path, allowed: int) -> None:
    """Removes the least recently used activation folders until the others take `allowed` bytes."""
    entries = []
    for meta in parent.glob("*/meta.json"):
        entries.append((meta.stat().st_mtime, read_json(meta)["bytes"], meta.parent))
    used = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda e: e[0]):
        if used <= allowed:
            return
        shutil.rmtree(path, ignore_errors=True)
        used -= size

"""Activations after the frozen prefix, computed once and read in every later epoch.

The prefix (`Plan.prefix`) gives the same activations for the same image in every epoch, so an epoch
that starts behind it costs the trainable suffix only. Kept in memory, or in a folder that later
runs share: one ArrayRecord file per split, named by a hash of all it depends on, written beside and
renamed when whole.
"""

from __future__ import annotations

import collections
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.augment import canonical, make_input_pipeline, mixes
from finetune_jax.data.batches import eval_batches
from finetune_jax.data.sources import ActivationExamples, Examples
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, write_json
from finetune_jax.hosts import all_agree, is_primary, wait
from finetune_jax.mesh import batch_sharding, local_rows, state_sharding
from finetune_jax.progress import say
from finetune_jax.tables import size as show_bytes
from finetune_jax.training.phase import PhaseRun


def cache_prefix(
    run: PhaseRun,
    variables: dict[str, Any],
    examples: Examples,
    split: str,
    place: Callable[[Any], Any],
    once: Callable[[Any, Callable[[], Any]], Any],
    *,
    training: bool,
) -> Examples:
    """Returns examples that hold activations instead of inputs, or `examples` as they are.

    Not cached: a plan without a prefix, augmented training images without fixed views, or mixed
    with others, those that a teacher sees as well, inputs that the task draws at random, and what
    exceeds the limits of ``config.prefix_cache``.

    Args:
      run: phase whose prefix is meant.
      variables: whole variables at the start of the phase.
      examples: of the split.
      split: its text, part of the key.
      place: puts a host batch on devices.
      once: gives what another arm already computed, see `Shared.once`.
      training: whether the images are augmented.
    """
    config = run.setup.config
    settings, prefix = config.prefix_cache, run.plan.prefix
    if not (settings.enabled and prefix):
        return examples
    augment = canonical(config.data.augment) if training else ""
    views = settings.views if augment else 1
    if augment and (not views or mixes(augment)):
        return examples
    task = run.setup.task
    if task.random_inputs or (training and task.teacher):
        return examples
    total = run.activation_bytes * len(examples) * views
    in_memory = total <= settings.bytes
    if not in_memory and not (settings.dir and total <= settings.dir_bytes):
        say(f"prefix not cached: {split} would take {show_bytes(total)}")
        return examples
    key = _key(run, variables, split, len(examples), augment, views)
    folder = None if in_memory and not settings.dir else Path(settings.dir) / key
    return once(
        ("prefix", key),
        lambda: _fill(run, variables, examples, split, place, augment, views, folder),
    )


def _fill(
    run: PhaseRun,
    variables: dict[str, Any],
    examples: Examples,
    split: str,
    place: Any,
    augment: str,
    views: int,
    folder: Path | None,
) -> Examples:
    """Reads the activations from `folder` if they are there, else computes them."""
    settings, prefix = run.setup.config.prefix_cache, run.plan.prefix
    total = run.activation_bytes * len(examples) * views
    where = f"{len(prefix)} of {len(run.plan.stages)} stages cached, {show_bytes(total)}, {split}"
    if folder and all_agree((folder / "meta.json").is_file()):
        os.utime(folder / "meta.json")
        say(f"prefix of {where}, found in {folder}")
        return ActivationExamples(_reader(folder, run), dict(np.load(folder / _TARGETS)), views)
    targets = _empty_targets(run, len(examples))
    compute = _batches(run, variables, examples, place, augment, views, targets)
    if folder is None:
        store = jax.tree.map(
            lambda x: np.empty((len(examples) * views, run.inputs, *x.shape), x.dtype),
            run.activation,
        )
        for start, values in compute:
            for kept, value in zip(jax.tree.leaves(store), jax.tree.leaves(values), strict=True):
                kept[start : start + len(value)] = value
        say(f"prefix of {where}")
        return ActivationExamples(
            lambda indices: jax.tree.map(lambda x: _rows(x[indices]), store), targets, views
        )
    if is_primary():
        _make_room(Path(settings.dir), settings.dir_bytes - total)
        _write(folder, compute, targets, {"stages": list(prefix), "split": split, "bytes": total})
    else:
        collections.deque(compute, maxlen=0)  # takes part in every batch
    wait("prefix")
    if not all_agree((folder / "meta.json").is_file()):
        raise UserError(f"prefix_cache.dir: {folder} is not shared by all processes")
    say(f"prefix of {where}, written to {folder}")
    return ActivationExamples(_reader(folder, run), targets, views)


_TARGETS = "targets.npz"


def _rows(values: np.ndarray) -> np.ndarray:
    """[examples, inputs, …] as the model has it: [examples * inputs, …]."""
    return values.reshape(-1, *values.shape[2:])


def _empty_targets(run: PhaseRun, count: int) -> dict[str, np.ndarray]:
    shapes = run.setup.task.abstract(count)
    return {name: np.empty(s.shape, s.dtype) for name, s in shapes.items()}


def _batches(
    run: PhaseRun,
    variables: Any,
    examples: Examples,
    place: Any,
    augment: str,
    views: int,
    targets: dict[str, np.ndarray],
) -> Any:
    """Yields (number of the first example, activations) in order, and fills `targets`.

    Activations are a tree of arrays [examples, inputs, …].
    """
    setup = run.setup
    stop = run.plan.stages[len(run.plan.prefix)]
    pipeline = make_input_pipeline(setup.preprocess, augment)
    # The train step's batch size, so that the same kernels run as without a cache.
    batch_size = setup.config.train.batch_size

    def forward(variables: Any, batch: Any, key: Any) -> Any:
        x, _ = pipeline(key, batch)
        return run.model.apply(variables, x, stop=stop)

    mesh = setup.mesh
    placed = state_sharding(mesh, variables)
    step = jax.jit(forward, in_shardings=(placed, batch_sharding(mesh), None))
    rows = local_rows(mesh, batch_size)
    for view in range(views):
        key = jax.random.fold_in(jax.random.key(setup.config.seed), view)
        done = view * len(examples)
        for number, batch in enumerate(
            eval_batches(examples, setup.encode, batch_size, setup.config.data.workers, rows)
        ):
            real = int(batch.pop("mask").sum())
            batch = place(batch)
            for name, values in targets.items() if not view else ():
                values[done : done + real] = tree.on_host(batch[name])[:real]
            inputs = {name: x for name, x in batch.items() if name not in targets}
            out = jax.tree.map(
                tree.on_host, step(variables, inputs, jax.random.fold_in(key, number))
            )
            yield (
                done,
                jax.tree.map(lambda x, n=real: x.reshape(-1, run.inputs, *x.shape[1:])[:n], out),
            )
            done += real


def _key(
    run: PhaseRun, variables: dict[str, Any], split: str, count: int, augment: str, views: int
) -> str:
    config = run.setup.config
    prefix = set(run.plan.prefix)
    leaves = {
        path: tree.checksum(leaf)
        for path, leaf in tree.flatten(variables).items()
        if path.split("/")[1] in prefix
    }
    content = {
        "leaves": leaves,
        "model": [config.model.name, config.model.dtype, config.model.frozen_dtype],
        "deltas": [d.to_json() for d in run.plan.deltas if d.module.split("/")[0] in prefix],
        "stages": run.plan.prefix,
        "preprocess": run.setup.preprocess.to_json(),
        "task": run.setup.task.to_json(),
        "data": [run.setup.source.name, run.setup.source.origin, split, count],
        "augment": [augment, views, config.seed, config.train.batch_size] if augment else [],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _write(
    folder: Path, batches: Any, targets: dict[str, np.ndarray], meta: dict[str, Any]
) -> None:
    from array_record.python import array_record_module

    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=".half-", dir=folder.parent))
    try:
        writer = array_record_module.ArrayRecordWriter(str(half / "activations"), "group_size:1")
        for _, values in batches:
            leaves = jax.tree.leaves(values)
            for number in range(len(leaves[0])):
                parts = (np.ascontiguousarray(x[number]).tobytes() for x in leaves)
                writer.write(b"".join(parts))
        writer.close()
        np.savez(half / _TARGETS, **targets)
        write_json(half / "meta.json", meta)
        try:
            half.rename(folder)
        except OSError:  # another run was faster
            if not (folder / "meta.json").is_file():
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _reader(folder: Path, run: PhaseRun) -> Callable[[np.ndarray], np.ndarray]:
    from array_record.python import array_record_data_source

    source = array_record_data_source.ArrayRecordDataSource(str(folder / "activations"))
    leaves, structure = jax.tree.flatten(run.activation)
    sizes = [run.inputs * math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves]
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


def _make_room(folder: Path, allowed: int) -> None:
    """Removes the entries that were not used for longest until the rest fits."""
    entries = []
    for meta in folder.glob("*/meta.json"):
        entries.append((meta.stat().st_mtime, read_json(meta)["bytes"], meta.parent))
    used = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda e: e[0]):
        if used <= allowed:
            return
        shutil.rmtree(path, ignore_errors=True)
        used -= size

"""Activations after the frozen prefix, computed once and read in every later epoch.

The prefix (`Plan.prefix`) gives the same activations for the same image in every epoch, so an epoch
that starts after the prefix costs the trainable suffix only. The activations are kept in memory, or
in a folder that later runs share (`activation_folder`).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.augment import canonical, make_input_pipeline, mixes
from finetune_jax.data.batches import eval_batches
from finetune_jax.data.examples import ActivationExamples, Examples
from finetune_jax.errors import UserError
from finetune_jax.hosts import all_agree, is_primary, wait
from finetune_jax.mesh import batch_sharding, local_rows, state_sharding
from finetune_jax.progress import say
from finetune_jax.setup import Setup
from finetune_jax.tables import size as show_bytes
from finetune_jax.training.activation_folder import ActivationFolder, make_room
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.shared import SharedCaches
from finetune_jax.training.step import Batch


def cache_prefix(
    phase: PhaseRun,
    variables: dict[str, Any],
    examples: Examples,
    split: str,
    place: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]],
    caches: SharedCaches,
    *,
    training: bool,
) -> Examples:
    """Returns examples that hold activations instead of inputs, or `examples` as they are.

    Activations are not cached for a plan without a prefix; for training images that are augmented
    without a fixed number of views, mixed with other images, or read by a teacher too; for inputs
    that the task draws at random; and where they exceed the limits of ``config.prefix_cache``.

    Args:
      phase: phase whose prefix is computed.
      variables: variables of both halves at the start of the phase.
      examples: examples of the split.
      split: text of the split, which is part of the cache key.
      place: function that puts a host batch on devices.
      caches: caches that keep the activations for the other arms.
      training: whether the images are augmented.
    """
    config = phase.setup.config
    settings = config.prefix_cache
    if not (settings.enabled and phase.plan.prefix):
        return examples
    augment = canonical(config.data.augment) if training else ""
    views = settings.views if augment else 1
    if augment and (not views or mixes(augment)):
        return examples
    task = phase.setup.task
    if task.random_inputs or (training and task.teacher):
        return examples
    total = phase.activation_bytes * len(examples) * views
    in_memory = total <= settings.bytes
    if not in_memory and not (settings.dir and total <= settings.dir_bytes):
        say(f"prefix not cached: {split} would take {show_bytes(total)}")
        return examples
    key = _key(phase, variables, split, len(examples), augment, views)
    prefix = _Prefix(phase, variables, examples, split, place, augment, views)
    if in_memory and not settings.dir:
        return caches.activations.get(key, prefix.in_memory)
    folder = ActivationFolder(Path(settings.dir) / key, phase.activation, phase.inputs)
    return caches.activations.get(key, lambda: prefix.on_disk(folder))


def is_read_often(setup: Setup, steps: int, examples: int, arms: int = 1) -> bool:
    """Whether a phase reads its training activations often enough for `cache_prefix` to pay.

    Args:
      setup: setup of the run.
      steps: number of steps of the phase.
      examples: number of training examples.
      arms: number of arms that read the activations.
    """
    config = setup.config
    reads = steps * config.train.batch_size * arms
    return reads > 1.5 * examples or bool(config.prefix_cache.views)


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """The activations of one split; attributes as for `cache_prefix`, and:

    Attributes:
      augment: augmentation, in canonical text; empty for none.
      views: number of augmented views of each example.
    """

    phase: PhaseRun
    variables: dict[str, Any]
    examples: Examples
    split: str
    place: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]
    augment: str
    views: int

    @property
    def total_bytes(self) -> int:
        return self.phase.activation_bytes * len(self.examples) * self.views

    def in_memory(self) -> Examples:
        """Computes the activations into memory."""
        count = len(self.examples) * self.views
        store = jax.tree.map(
            lambda x: np.empty((count, self.phase.inputs, *x.shape), x.dtype),
            self.phase.activation,
        )
        targets = self._empty_targets()
        for start, values in self._batches(targets):
            for kept, value in zip(jax.tree.leaves(store), jax.tree.leaves(values), strict=True):
                kept[start : start + len(value)] = value
        say(f"prefix of {self._description()}")
        return ActivationExamples(
            lambda indices: jax.tree.map(lambda x: _joined_inputs(x[indices]), store),
            targets,
            self.views,
        )

    def on_disk(self, folder: ActivationFolder) -> Examples:
        """Reads the activations from a folder, after computing them if the folder is not there."""
        if self._usable(folder):
            say(f"prefix of {self._description()}, found in {folder.path}")
            return ActivationExamples(folder.reader(), folder.targets(), self.views)
        targets = self._empty_targets()
        batches = self._batches(targets)
        if is_primary():
            allowed = self.phase.setup.config.prefix_cache.dir_bytes - self.total_bytes
            make_room(folder.path.parent, allowed)
            stages = list(self.phase.plan.prefix)
            meta = {"stages": stages, "split": self.split, "bytes": self.total_bytes}
            folder.write(batches, targets, meta)
        else:
            collections.deque(batches, maxlen=0)  # every host takes part in every batch
        wait("prefix")
        if not all_agree(folder.exists):  # the folder that the primary has just written
            raise UserError(f"prefix_cache.dir: {folder.path} is not shared by all processes")
        say(f"prefix of {self._description()}, written to {folder.path}")
        return ActivationExamples(folder.reader(), targets, self.views)

    def _usable(self, folder: ActivationFolder) -> bool:
        """Whether the folder exists and is complete; a damaged folder is removed and reported."""
        if not all_agree(folder.exists):
            return False
        damage = folder.damage(jax.process_index(), jax.process_count())
        whole = all_agree(not damage)
        if is_primary():
            if whole:
                folder.mark_used()
            else:
                reason = damage or "another process found the damage"
                say(f"{folder.path} is damaged, removed and computed anew: {reason}")
                folder.remove()
        wait("prefix cache is verified")
        return whole

    def _description(self) -> str:
        plan = self.phase.plan
        return (
            f"{len(plan.prefix)} of {len(plan.stages)} stages cached, "
            f"{show_bytes(self.total_bytes)}, {self.split}"
        )

    def _empty_targets(self) -> dict[str, np.ndarray]:
        shapes = self.phase.setup.task.abstract(len(self.examples))
        return {name: np.empty(s.shape, s.dtype) for name, s in shapes.items()}

    def _batches(self, targets: dict[str, np.ndarray]) -> Iterator[tuple[int, Any]]:
        """Yields (number of the first record, activations) in order, and fills `targets`.

        Activations are a tree of arrays [examples, inputs, …].
        """
        setup, inputs, count = self.phase.setup, self.phase.inputs, len(self.examples)
        # The train step's batch size, so that the same kernels run as without a cache.
        batch_size = setup.config.train.batch_size
        forward = self._compile_forward()
        rows = local_rows(setup.mesh, batch_size)
        for view in range(self.views):
            key = jax.random.fold_in(jax.random.key(setup.config.seed), view)
            done = view * count
            for number, host_batch in enumerate(
                eval_batches(
                    self.examples, setup.encode, batch_size, setup.config.data.workers, rows
                )
            ):
                real = int(host_batch.pop("mask").sum())
                batch = self.place(host_batch)
                for name, values in targets.items() if not view else ():
                    values[done : done + real] = tree.on_host(batch[name])[:real]
                model_inputs = {name: x for name, x in batch.items() if name not in targets}
                out = jax.tree.map(
                    tree.on_host,
                    forward(self.variables, model_inputs, jax.random.fold_in(key, number)),
                )
                yield (
                    done,
                    jax.tree.map(lambda x, n=real: x.reshape(-1, inputs, *x.shape[1:])[:n], out),
                )
                done += real

    def _compile_forward(self) -> Callable[[dict[str, Any], Batch, jax.Array], Any]:
        """Returns the jitted function of (variables, batch, key) to activations."""
        setup, model, stop = self.phase.setup, self.phase.model, self.phase.after_prefix
        pipeline = make_input_pipeline(setup.preprocess, self.augment)

        def forward(variables: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
            x, _ = pipeline(key, batch)
            return model.apply(variables, x, stop=stop)

        placed = state_sharding(setup.mesh, self.variables)
        return jax.jit(forward, in_shardings=(placed, batch_sharding(setup.mesh), None))


def _joined_inputs(values: np.ndarray) -> np.ndarray:
    """Joins the axes [examples, inputs, …] to [examples * inputs, …], as the model has them."""
    return values.reshape(-1, *values.shape[2:])


def _key(
    phase: PhaseRun, variables: dict[str, Any], split: str, count: int, augment: str, views: int
) -> str:
    """Hash of all that the activations depend on."""
    setup, config = phase.setup, phase.setup.config
    prefix = set(phase.plan.prefix)
    leaves = {
        path: tree.checksum(leaf)
        for path, leaf in tree.flatten(variables).items()
        if path.split("/")[1] in prefix
    }
    content = {
        "leaves": leaves,
        "model": [config.model.name, config.model.dtype, config.model.frozen_dtype],
        "formats": [[p, str(f)] for p, f in phase.model.formats if p.split("/")[0] in prefix],
        "deltas": [d.to_json() for d in phase.plan.deltas if d.module.split("/")[0] in prefix],
        "stages": phase.plan.prefix,
        "preprocess": setup.preprocess.to_json(),
        "task": setup.task.to_json(),
        "data": [setup.source.name, setup.source.origin, split, count],
        "augment": [augment, views, config.seed, config.train.batch_size] if augment else [],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

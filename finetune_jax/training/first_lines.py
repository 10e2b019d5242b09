"""The first lines of a run: its data, its length, its device, and what trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from finetune_jax.data.classes import listed
from finetune_jax.devices import device_words, unused_accelerators
from finetune_jax.setup import Setup
from finetune_jax.tables import shown


def data_line(setup: Setup) -> str:
    """One line with the classes and the sizes of the splits, before any example is read."""
    source, data = setup.source, setup.config.data
    names = setup.task.class_names
    classes = f"{len(names)} classes: {listed(names)}" if names else f"task {setup.task.name}"
    sizes = []
    for name in ("train", "validation", "test"):
        if name in source.missing:
            sizes.append(f"no {name} split, so that nothing is scored on it")
        elif data[name]:
            held = source.held_out and data[name] == name == "validation"
            drawn = f" held out of training by data.split_seed={data.split_seed}" if held else ""
            sizes.append(f"{name} {setup.examples(name):,}{drawn}")
    return shown(f"data: {source.name}, {classes}; {', '.join(sizes)}")


def run_lines(setup: Setup, steps: Sequence[int], examples: int) -> Iterator[str]:
    """Yields the length of a run, what it computes on and what it trains.

    Args:
      setup: resolved config.
      steps: number of steps of each phase.
      examples: number of training examples.
    """
    config, total = setup.config, sum(steps)
    epochs = total * config.train.batch_size / examples
    yield (
        f"run: {total:,} steps of {config.train.batch_size}, {epochs:.3g} epochs; "
        f"{config.model.name} in {config.model.dtype} on {device_words()}"
    )
    shapes = {x.path: x.shape for phase in setup.phases for x in phase.plan.leaves}
    trainable = sum(math.prod(shapes[path]) for path in setup.trainable)
    whole = sum(math.prod(leaf.shape) for leaf in setup.plan.leaves)
    yield (
        f"scheme {setup.scheme}: {trainable:,} of {whole:,} parameters train; "
        f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}"
    )
    yield from unused_accelerators()

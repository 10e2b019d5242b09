"""The first lines of a run: its data, length and device, its weights, and what trains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from finetune_jax.data.classes import listed
from finetune_jax.devices import device_words, unused_accelerators
from finetune_jax.setup import Setup
from finetune_jax.tables import shown
from finetune_jax.training.optimizer import warmup_steps
from finetune_jax.unused_keys import unused_keys


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


def length_remarks(
    setup: Setup, starts: Sequence[int], lengths: Sequence[int], examples: int
) -> Iterator[str]:
    """Yields what a run does in another way than its config may seem to say.

    Args:
      setup: resolved config.
      starts, lengths: first step and number of steps of each phase.
      examples: number of training examples.
    """
    yield from unused_keys(setup)
    train = setup.config.train
    if examples < train.batch_size:
        yield (
            f"train.batch_size={train.batch_size} is more than the {examples} training examples: "
            f"a batch has each of them {train.batch_size / examples:.3g} times"
        )
    for number, (phase, start, steps) in enumerate(zip(setup.phases, starts, lengths, strict=True)):
        warmup = max(warmup_steps(setup.config.optimizer, phase, start).values())
        if warmup >= steps > 0:
            yield (
                f"phase {number + 1}: its warm-up of {warmup} steps is cut to {steps - 1}, because "
                f"the phase has {steps} steps; a tenth of them: "
                f"--config.optimizer.warmup_steps={steps // 10}"
            )
    if train.accumulate > 1 and any(phase.plan.tracked for phase in setup.phases):
        yield (
            f"train.accumulate={train.accumulate}: BatchNorm that trains normalises with the "
            f"statistics of {train.batch_size // train.accumulate} images, not of "
            f"{train.batch_size}"
        )


def weights_line(setup: Setup, manifest: dict[str, Any]) -> str:
    """One line about the weight file's tensors, or about random weights without a weight file.

    Args:
      setup: resolved config.
      manifest: the manifest as JSON.
    """
    if manifest["file"] is None:
        frozen = [x for x in setup.plan.leaves if not x.delta and x.path not in setup.trainable]
        warning = f"; WARNING: {len(frozen)} frozen leaves are random" if frozen else ""
        return f"weights: random, pretrained.path is empty{warning}"
    counts = Counter(row["decision"] for row in manifest["rows"])
    loaded = counts["loaded"] + counts["transformed"] + counts["cast"]
    parts = [f"{loaded} tensors loaded"]
    if counts["reinitialised"]:
        stages = dict.fromkeys(
            row["leaf"].split("/")[1]
            for row in manifest["rows"]
            if row["decision"] == "reinitialised"
        )
        parts.append(f"{counts['reinitialised']} re-initialised ({', '.join(stages)})")
    if counts["dropped"]:
        parts.append(f"{counts['dropped']} dropped")
    return f"weights: {', '.join(parts)}"

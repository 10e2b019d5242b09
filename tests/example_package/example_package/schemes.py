"""A scheme: ``--config.scheme='example_package.schemes:top(2)'``."""

from __future__ import annotations

from finetune_jax.schemes import ModelSpec, Selection


def top(spec: ModelSpec, k: int) -> Selection:
    """The kernels of the last k stages."""
    stages = tuple(f"{stage}/" for stage in spec.stages[-k:])
    return Selection([p for p in spec.paths if p.startswith(stages) and p.endswith("kernel")])

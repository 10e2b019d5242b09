"""The evaluation step, and the forward pass through some stages: pure functions for `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from finetune_jax.data.augment import InputPipeline
from finetune_jax.deltas import Adapted
from finetune_jax.models import StagedModel
from finetune_jax.tasks import Task

Batch = dict[str, jax.Array]


def make_forward(
    model: Adapted | StagedModel,
    prepare: Callable[[Batch], Any],
    start: str | None = None,
    stop: str | None = None,
) -> Callable[[dict[str, Any], Batch], Any]:
    """Returns a function of (variables, batch) to the output of the stages from `start` to `stop`.

    Every stage runs in inference mode.

    Args:
      model: staged model.
      prepare: makes the model's input from a batch, on device; `Preprocess.device` in most cases.
      start: first stage that runs. The batch then holds ``activation``, the input of that stage,
        and `prepare` is not called. None runs from the first stage of the model.
      stop: stage in front of which the pass ends; ``"head"`` gives the features f32[batch, …] that
        enter the head. None runs to the last stage.
    """

    def forward(variables: dict[str, Any], batch: Batch) -> Any:
        x = prepare(batch) if start is None else batch["activation"]
        return model.apply(variables, x, start=start, stop=stop)

    return forward


def make_eval_step(
    model: Adapted | StagedModel, task: Task, pipeline: InputPipeline, start: str | None = None
) -> Callable[[dict[str, Any], Batch], dict[str, jax.Array]]:
    """Returns a function of (variables, batch) to what the task observes of each example.

    Every stage runs in inference mode. Padded rows are observed too: the caller has the mask and
    removes them.

    Args:
      model: staged model.
      task: its `observe` reads the outputs and the targets of the batch.
      pipeline: makes the model's input from a batch, on device. Only a task of random inputs has a
        pipeline that augments, and then the PRNG key is the same for every batch.
      start: first stage that runs. The batch then holds ``activation``, the input of that stage,
        and the pipeline is not called. None runs from the first stage of the model.
    """

    def eval_step(variables: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        if task.random_inputs:
            raw = batch
            x, batch = task.inputs(jax.random.key(0), lambda key: pipeline(key, raw))
        else:
            x = pipeline.prepare(batch) if start is None else batch["activation"]
        if not task.reads_features:
            return task.observe(run(variables, x, start), batch)
        features = run(variables, x, start, "head")
        return task.observe(run(variables, features, "head"), {**batch, "features": features})

    def run(
        variables: dict[str, Any], x: Any, start: str | None, stop: str | None = None
    ) -> jax.Array:
        outputs: Any = model.apply(variables, x, start=start, stop=stop)
        return outputs

    return eval_step

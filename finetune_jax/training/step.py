"""The one train step, a pure function of (state, frozen, batch)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from finetune_jax import tree
from finetune_jax.data.augment import InputPipeline
from finetune_jax.deltas import Adapted
from finetune_jax.schemes import Plan
from finetune_jax.tasks import Task
from finetune_jax.tasks.teacher import Teacher
from finetune_jax.training.state import Frozen, State

Batch = dict[str, jax.Array]
"""Inputs (or ``activation``) and targets by name, on devices."""

Metrics = dict[str, jax.Array]
"""Means over a batch by name, each f32[]."""

TrainStep = Callable[[State, Frozen, Batch], tuple[State, Metrics]]

FeatureStep = Callable[[dict[str, Any], Batch], tuple[jax.Array, jax.Array]]
"""Function of (variables, batch) to features f32[batch, width] that enter the head, and labels
i32[batch]."""

Leaves = dict[str, Any]
"""A nested dict of arrays: a half of the params, BatchNorm statistics, or gradients."""

Loss = Callable[
    [Leaves, Leaves, dict[str, Any], Frozen, Batch, jax.Array],
    tuple[jax.Array, tuple[Leaves, Metrics]],
]
"""Function of (trainable params, tracked statistics, hyper, frozen, batch, key) to (loss f32[],
(new tracked statistics, metrics))."""


def make_loss(
    model: Adapted,
    task: Task,
    plan: Plan,
    pipeline: InputPipeline,
    teacher: Teacher | None = None,
) -> Loss:
    """Returns the loss as a function of the trainable half; arguments as for `make_train_step`."""
    after_prefix = plan.stages[len(plan.prefix)]

    def loss_fn(
        params: Leaves,
        stats: Leaves,
        hyper: dict[str, Any],
        frozen: Frozen,
        batch: Batch,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[Leaves, Metrics]]:
        augment_key, dropout_key = jax.random.split(key)
        start: str | None
        if "activation" in batch:
            x, start = batch["activation"], after_prefix
        else:
            raw, start = batch, None
            x, batch = task.inputs(augment_key, lambda key: pipeline(key, raw))
            if teacher:
                batch = {**batch, **teacher.outputs(frozen.teacher, x)}
        variables = {
            "params": tree.merge(params, frozen.params),
            "batch_stats": tree.merge(stats, frozen.stats),
        }
        outputs, updates = model.apply(
            variables,
            x,
            plan.mode,
            start=start,
            stop="head" if task.reads_features else None,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        if task.reads_features:
            batch = {**batch, "features": outputs}
            outputs = model.apply(variables, outputs, start="head")
        values = task.per_example(outputs, batch, hyper)
        metrics = jax.tree.map(jnp.mean, values)
        new_stats, _ = plan.split_statistics(_complete(updates.get("batch_stats", {}), stats))
        return metrics["loss"], (new_stats, metrics)

    return loss_fn


def _complete(updated: tree.Tree, stats: tree.Tree) -> dict[str, Any]:
    """Statistics after a forward pass, which may have skipped stages before its start."""
    return tree.unflatten({**tree.flatten(stats), **tree.flatten(updated)})


def make_train_step(
    model: Adapted,
    task: Task,
    plan: Plan,
    optimizer: optax.GradientTransformationExtraArgs,
    pipeline: InputPipeline,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    sam_rho: float = 0.0,
    l2_sp: float = 0.0,
    l2_sp_head: float = 0.0,
    skip_nonfinite: bool = False,
    teacher: Teacher | None = None,
) -> TrainStep:
    """Returns the train step, ready for `jax.jit`.

    Only the trainable half is differentiated; the loss closes over the frozen half. So clipping,
    norms, EMA, SAM and accumulation, which read gradients, cannot bring back the backward pass of
    frozen leaves, and the step returns no frozen array.

    Args:
      model: model with the deltas of the plan.
      task: task that computes the loss.
      plan: plan with the halves and with the mode of each stage.
      optimizer: transformation over the trainable half.
      pipeline: function on devices from a batch to the inputs of the model, and to the batch with
        the targets that the random augmentation gives.
      accumulate: number of micro-batches whose gradients are averaged. BatchNorm sees each
        micro-batch by itself.
      ema_decay: decay of the exponential moving average, in [0, 1); 0 turns averaging off.
      sam_rho: radius of sharpness-aware minimisation (Foret et al. 2020, arXiv 2010.01412): the
        gradient is taken at w + rho g / |g|, with the norm over the trainable half, per
        micro-batch; 0 turns it off. BatchNorm statistics come from the first of the two passes.
      l2_sp: alpha of the penalty alpha/2 |w - w0|², where w0 is ``frozen.anchor`` (Li et al. 2018,
        arXiv 1802.01483).
      l2_sp_head: beta of the penalty beta/2 |w|² on trainable leaves without an anchor.
      skip_nonfinite: whether a step whose loss, gradient or result is not finite changes nothing
        but the number of the step; the metric ``skipped`` is then 1.
      teacher: teacher whose outputs the task reads; its variables are ``frozen.teacher``.

    Returns:
      A function of (state, frozen, batch) to (state, metrics). The batch holds the targets of the
      task, and either the inputs of the preprocessing or ``activation``, the output of the plan's
      prefix for these inputs. Metrics are f32[] means over the batch: ``loss`` without the L2-SP
      penalty, all other values that the task computes per example, and ``grad_norm`` over the
      trainable half.
    """
    loss = make_loss(model, task, plan, pipeline, teacher)
    gradient = _with_sam(jax.grad(loss, has_aux=True), sam_rho)

    def train_step(state: State, frozen: Frozen, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            grads, (stats, metrics) = gradient(
                state.params, state.stats, state.hyper, frozen, batch, key
            )
        else:
            grads, stats, metrics = _accumulated(
                gradient, state, frozen, micro_batches(batch, accumulate, task.views), key
            )
        metrics["grad_norm"] = optax.global_norm(grads)
        if l2_sp or l2_sp_head:
            grads = _with_l2_sp(grads, state.params, frozen.anchor, l2_sp, l2_sp_head)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, step=state.step, hyper=state.hyper
        )
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            # A smaller decay in the first steps, so that the average of a short run is not
            # dominated by the initial weights.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update({"params": params, "stats": stats}, ema, 1 - decay)
        new = State(state.step + 1, params, stats, opt_state, ema, state.key, state.hyper)
        if skip_nonfinite:
            new, metrics["skipped"] = _unless_finite(new, state, metrics)
        return new, metrics

    return train_step


def _unless_finite(new: State, old: State, metrics: Metrics) -> tuple[State, jax.Array]:
    """(`new` if everything is finite, else `old` with the number of the new step, 0 or 1)."""
    floats = [x for x in jax.tree.leaves(new) if jnp.issubdtype(x.dtype, jnp.inexact)]
    values = [metrics["loss"], metrics["grad_norm"], *floats]
    good = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in values]))
    kept = jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old)
    return dataclasses.replace(kept, step=new.step), 1.0 - good.astype(jnp.float32)


Gradient = Callable[..., tuple[Leaves, tuple[Leaves, Metrics]]]
"""Function of the arguments of `Loss` to (gradient, (new tracked statistics, metrics))."""


def _with_sam(gradient: Gradient, rho: float) -> Gradient:
    """The gradient of sharpness-aware minimisation; `gradient` itself if `rho` is 0."""
    if not rho:
        return gradient

    def sharp_gradient(
        params: Leaves, stats: Leaves, *rest: Any
    ) -> tuple[Leaves, tuple[Leaves, Metrics]]:
        grads, aux = gradient(params, stats, *rest)
        reach = rho / jnp.maximum(optax.global_norm(grads), 1e-12)
        there = jax.tree.map(lambda w, g: w + reach * g, params, grads)
        grads, _ = gradient(there, stats, *rest)
        return grads, aux

    return sharp_gradient


def micro_batches(batch: Batch, count: int, views: int) -> Batch:
    """Cuts a batch into `count` micro-batches along a new leading axis.

    Micro-batches are interleaved, so that every device keeps a share of every micro-batch. The
    `views` activations of one example are neighbours and stay together.
    """

    def split(x: jax.Array, inputs: int) -> jax.Array:
        parts = x.reshape(-1, count, inputs, *x.shape[1:]).swapaxes(0, 1)
        return parts.reshape(count, -1, *x.shape[1:])

    return {
        name: jax.tree.map(functools.partial(split, inputs=views if name == "activation" else 1), x)
        for name, x in batch.items()
    }


def _accumulated(
    gradient: Gradient, state: State, frozen: Frozen, micro_batches: Batch, key: jax.Array
) -> tuple[Leaves, Leaves, Metrics]:
    """(mean gradient, tracked statistics, mean metrics) over micro-batches, one after another."""
    count = jax.tree.leaves(micro_batches)[0].shape[0]

    def body(carry: Any, item: Any) -> tuple[Any, None]:
        total, stats, sums = carry
        part, index = item
        grads, (stats, metrics) = gradient(
            state.params, stats, state.hyper, frozen, part, jax.random.fold_in(key, index)
        )
        return (
            jax.tree.map(jnp.add, total, grads),
            stats,
            jax.tree.map(jnp.add, sums, metrics),
        ), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(gradient, state.params, state.stats, state.hyper, frozen, first, key)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1][1])
    start = (jax.tree.map(jnp.zeros_like, state.params), state.stats, sums)
    (grads, stats, metrics), _ = jax.lax.scan(body, start, (micro_batches, jnp.arange(count)))
    grads, metrics = jax.tree.map(lambda x: x / count, (grads, metrics))
    return grads, stats, metrics


def _with_l2_sp(grads: Leaves, params: Leaves, anchor: Leaves, alpha: float, beta: float) -> Leaves:
    """Adds the gradient of the L2-SP penalty."""
    start = tree.flatten(anchor)

    def add(path: str, g: jax.Array, w: jax.Array) -> jax.Array:
        return g + (alpha * (w - start[path]) if path in start else beta * w)

    return tree.map_with_path(add, grads, params)

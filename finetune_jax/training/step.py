"""The one train step, a pure function of (state, base, batch)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from finetune_jax import tree
from finetune_jax.data.augment import InputPipeline
from finetune_jax.deltas import Adapted
from finetune_jax.schemes import Plan
from finetune_jax.tasks import Task
from finetune_jax.training.state import Frozen, State

if TYPE_CHECKING:
    from finetune_jax.training.teacher import Teacher

Batch = dict[str, jax.Array]


def make_loss(
    model: Adapted,
    task: Task,
    plan: Plan,
    pipeline: InputPipeline,
    teacher: Teacher | None = None,
) -> Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]:
    """Returns the loss of the trainable half; arguments as for `make_train_step`.

    A function of (trainable params, tracked statistics, hyper, base, batch, key) to (loss, (new
    tracked statistics, metrics)).
    """
    after_prefix = plan.stages[len(plan.prefix)]

    def loss_fn(
        params: Any, stats: Any, hyper: Any, base: Frozen, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        augment_key, dropout_key = jax.random.split(key)
        if "activation" in batch:
            x, start = batch["activation"], after_prefix
        else:
            raw, start = batch, None
            x, batch = task.inputs(augment_key, lambda key: pipeline(key, raw))
            if teacher:
                batch = {**batch, **teacher.answer(base.teacher, x)}
        variables = {
            "params": tree.merge(params, base.params),
            "batch_stats": tree.merge(stats, base.stats),
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
    teacher: Teacher | None = None,
) -> Callable[[State, Frozen, Batch], tuple[State, dict[str, jax.Array]]]:
    """Returns the step, ready for `jax.jit`.

    Only the trainable half is differentiated; the loss closes over the frozen one. So whatever
    reads gradients (clip, norm, EMA, SAM, accumulation) cannot revive the backward pass of frozen
    leaves, and no frozen array is returned.

    Args:
      model: with the plan's deltas.
      task: gives the loss.
      plan: halves, and the mode the stages run in.
      optimizer: over the trainable half.
      pipeline: from the batch to the model's inputs.
      accumulate: micro-batches whose gradients are averaged; BatchNorm sees each by itself.
      ema_decay: 0 for none.
      sam_rho: radius of sharpness-aware minimisation (Foret et al. 2020, arXiv 2010.01412): the
        gradient is taken at w + rho g / |g|, norm over the trainable half, per micro-batch; 0 for
        none. BatchNorm statistics come from the first of the two passes.
      l2_sp: alpha of alpha/2 |w - w0|² over ``base.anchor`` (Li et al. 2018, arXiv 1802.01483).
      l2_sp_head: beta of beta/2 |w|² over trainable leaves without an anchor.
      teacher: whose answers the task reads; its variables are ``base.teacher``.

    Returns:
      A function of (state, base, batch) to (state, metrics). The batch has the task's targets and
      the preprocessing's inputs or ``activation``, the output of the plan's prefix for those.
      Metrics are f32[] means over the batch: ``loss`` without L2-SP's penalty, what else the task
      gives per example, and ``grad_norm`` over the trainable half.
    """
    slope = jax.grad(make_loss(model, task, plan, pipeline, teacher), has_aux=True)

    def gradient(params: Any, stats: Any, *rest: Any) -> Any:
        grads, aux = slope(params, stats, *rest)
        if sam_rho:
            reach = sam_rho / jnp.maximum(optax.global_norm(grads), 1e-12)
            there = jax.tree.map(lambda w, g: w + reach * g, params, grads)
            grads, _ = slope(there, stats, *rest)
        return grads, aux

    def pull(grads: Any, params: Any, anchor: Any) -> Any:
        start = tree.flatten(anchor)

        def add(path: str, g: jax.Array, w: jax.Array) -> jax.Array:
            return g + (l2_sp * (w - start[path]) if path in start else l2_sp_head * w)

        return tree.map_with_path(add, grads, params)

    def train_step(state: State, base: Frozen, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        fixed = (state.hyper, base)
        if accumulate == 1:
            grads, (stats, metrics) = gradient(state.params, state.stats, *fixed, batch, key)
        else:
            # Interleaved, so that every device keeps a share of every micro-batch; activations of
            # one example, which come in a row, stay together.
            def split(x: jax.Array, inputs: int) -> jax.Array:
                parts = x.reshape(-1, accumulate, inputs, *x.shape[1:]).swapaxes(0, 1)
                return parts.reshape(accumulate, -1, *x.shape[1:])

            micro = {
                name: jax.tree.map(
                    functools.partial(split, inputs=task.views if name == "activation" else 1), x
                )
                for name, x in batch.items()
            }

            def body(carry: Any, item: Any) -> tuple[Any, None]:
                total, stats, sums = carry
                part, index = item
                grads, (stats, metrics) = gradient(
                    state.params, stats, *fixed, part, jax.random.fold_in(key, index)
                )
                return (
                    jax.tree.map(jnp.add, total, grads),
                    stats,
                    jax.tree.map(jnp.add, sums, metrics),
                ), None

            first = jax.tree.map(lambda x: x[0], micro)
            shapes = jax.eval_shape(gradient, state.params, state.stats, *fixed, first, key)
            sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1][1])
            start = (jax.tree.map(jnp.zeros_like, state.params), state.stats, sums)
            (grads, stats, metrics), _ = jax.lax.scan(body, start, (micro, jnp.arange(accumulate)))
            grads, metrics = jax.tree.map(lambda x: x / accumulate, (grads, metrics))
        metrics["grad_norm"] = optax.global_norm(grads)
        if l2_sp or l2_sp_head:
            grads = pull(grads, state.params, base.anchor)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, step=state.step, hyper=state.hyper
        )
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            # Warm-up, so that a short run does not remember its first weights for ever.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update({"params": params, "stats": stats}, ema, 1 - decay)
        new = State(state.step + 1, params, stats, opt_state, ema, state.key, state.hyper)
        return new, metrics

    return train_step


def _complete(updated: Any, stats: Any) -> Any:
    """Statistics after a pass that may have left out stages before its start."""
    return tree.unflatten({**tree.flatten(stats), **tree.flatten(updated)})

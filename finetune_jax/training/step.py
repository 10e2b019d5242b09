"""The one train step, a pure function of (state, base, batch), and the evaluation step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from finetune_jax import tree
from finetune_jax.models import StagedModel
from finetune_jax.schemes import Plan
from finetune_jax.tasks import Classification
from finetune_jax.training.state import Base, State

Batch = dict[str, jax.Array]


def make_train_step(
    model: StagedModel,
    task: Classification,
    plan: Plan,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[jax.Array], jax.Array],
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[State, Base, Batch], tuple[State, dict[str, jax.Array]]]:
    """Returns the step, ready for `jax.jit`.

    Only the trainable half is differentiated; the loss closes over the frozen one. So whatever
    reads gradients (clip, norm, EMA, accumulation) cannot revive the backward pass of frozen
    leaves, and no frozen array is returned.

    Args:
      model: staged module.
      task: gives the loss.
      plan: halves, and the mode the stages run in.
      optimizer: over the trainable half.
      prepare: uint8[b, h, w, 3] to normalised f32, on device.
      augment: (key, normalised images) to images of the same shape.
      accumulate: micro-batches whose gradients are averaged; BatchNorm sees each by itself.
      ema_decay: 0 for none.

    Returns:
      A function of (state, base, batch with ``image`` uint8[b, h, w, 3] and ``label`` i32[b]) to
      (state, metrics), the metrics being f32[] means over the batch: ``loss``, ``accuracy``, and
      ``grad_norm`` over the trainable half.
    """

    def loss_fn(
        params: Any, stats: Any, base: Base, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        augment_key, dropout_key = jax.random.split(key)
        images = augment(augment_key, prepare(batch["image"]))
        logits, updates = model.apply(
            {
                "params": tree.merge(params, base.params),
                "batch_stats": tree.merge(stats, base.stats),
            },
            images,
            plan.mode,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        metrics = jax.tree.map(jnp.mean, task.per_example(logits, batch))
        new_stats, _ = plan.split_statistics(updates.get("batch_stats", {}))
        return metrics["loss"], (new_stats, metrics)

    gradient = jax.grad(loss_fn, has_aux=True)

    def train_step(state: State, base: Base, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            grads, (stats, metrics) = gradient(state.params, state.stats, base, batch, key)
        else:
            # Interleaved, so that every device keeps a share of every micro-batch.
            micro = jax.tree.map(
                lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
            )

            def body(carry: Any, item: Any) -> tuple[Any, None]:
                total, stats, sums = carry
                part, index = item
                grads, (stats, metrics) = gradient(
                    state.params, stats, base, part, jax.random.fold_in(key, index)
                )
                return (
                    jax.tree.map(jnp.add, total, grads),
                    stats,
                    jax.tree.map(jnp.add, sums, metrics),
                ), None

            start = (
                jax.tree.map(jnp.zeros_like, state.params),
                state.stats,
                {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())},
            )
            (grads, stats, metrics), _ = jax.lax.scan(body, start, (micro, jnp.arange(accumulate)))
            grads, metrics = jax.tree.map(lambda x: x / accumulate, (grads, metrics))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            # Warm-up, so that a short run does not remember its first weights for ever.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update({"params": params, "stats": stats}, ema, 1 - decay)
        metrics["grad_norm"] = optax.global_norm(grads)
        new = State(state.step + 1, params, stats, opt_state, ema, state.key)
        return new, metrics

    return train_step


def make_eval_step(
    model: StagedModel, task: Classification, prepare: Callable[[jax.Array], jax.Array]
) -> Callable[[dict[str, Any], Batch], dict[str, jax.Array]]:
    """Returns (variables, batch) to ``logits`` f32[b, classes] and the task's per-example values.

    Every stage runs in inference mode. Padding is left to the caller, who has the mask.
    """

    def eval_step(variables: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        logits = model.apply(variables, prepare(batch["image"]))
        return {"logits": logits, **task.per_example(logits, batch)}

    return eval_step

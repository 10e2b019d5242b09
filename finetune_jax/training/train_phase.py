"""A trained phase: state, cached prefix, compile, steps, audit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.batches import TrainBatches
from finetune_jax.data.sources import ActivationExamples
from finetune_jax.errors import UserError
from finetune_jax.evaluation.scores import headline
from finetune_jax.progress import Progress, say
from finetune_jax.training import audit as audit_lib
from finetune_jax.training import importance
from finetune_jax.training import state as state_lib
from finetune_jax.training.cost import measure
from finetune_jax.training.optimizer import reached
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.run import Run
from finetune_jax.training.shared import StepCall


def train_phase(
    current: Run, index: int, meta: dict[str, Any] | None
) -> Generator[StepCall, tuple[state_lib.State, dict[str, jax.Array]], None]:
    """Trains one phase; yields every step and is sent its (state, metrics).

    Whoever drives decides how a step is computed: by itself, or together with those of other arms.

    Args:
      current: with the variables of the phase's start, deltas included; changed to those at its
        end.
      index: of the phase.
      meta: of the checkpoint to continue from, if it is of this phase.
    """
    setup, config = current.setup, current.setup.config
    run, once = current.phase_run(index), current.shared.once
    plan, stop = run.plan, run.start + run.steps

    # 1. State and base, with what survives from the phase before.
    current.anchor_deltas(plan)
    anchor = run.anchor(tree.unflatten(current.anchor))
    state, base = run.create_state(current.variables, anchor, once)
    if current.state is not None:
        state = run.carry(*current.state, state)
    elif index:
        state = dataclasses.replace(state, step=state.step + run.start)
    current.state = None
    settled = _settled(current.settled | _drawn(plan), base)
    fingerprint = _fingerprint(current.settled | _drawn(plan), base)
    before = audit_lib.snapshot(state_lib.variables(state, base, averaged=False))
    current.variables = {}  # so that no frozen leaf is held twice while training
    start = run.start
    if meta:
        state, settled = current.checkpoints.restore(
            run.abstract_state(anchor)[0], settled, fingerprint
        )
        base = _put(base, settled)
        start = meta["next_step"]
        before = {**before, **meta["snapshot"]}
        say(f"resuming from step {start}")
    base = current.shared.intern(base, before)
    snapshot = {
        p: before[p]
        for p in {f"params/{q}" for q in plan.trainable}
        | {f"batch_stats/{q}" for q in plan.tracked_statistics}
        | settled.keys()
    }

    # 2. Activations after the frozen prefix, where they will be read more than once. A resumed run
    # decides as the whole one did: another program would end in other bits.
    train, validation = current.splits["train"], current.splits.get("validation")
    variables = state_lib.variables(state, base, averaged=False)
    n = len(train)
    reads = run.steps * config.train.batch_size * current.shared.arms
    if reads > 1.5 * n or config.prefix_cache.views:
        train = current.behind_prefix(run, variables, "train")
        if validation is not None:
            validation = current.behind_prefix(run, variables, "validation")
    del variables
    cached = isinstance(train, ActivationExamples)

    # 3. Compile.
    def compile_step() -> Any:
        say(f"compiling the train step for {plan.scheme}")
        return run.compile_train_step(anchor, cached=cached)

    step_function = once(("train", index, cached), compile_step)
    current.costs.append(measure(step_function, state, config.train.accumulate))

    # 4. Steps.
    batches = current.train_batches(train)
    steps_per_epoch = n / config.train.batch_size
    eval_every = max(1, round(config.eval.every_epochs * steps_per_epoch))
    save_every = config.checkpoint.every_steps or eval_every
    measure_every = max(1, round(steps_per_epoch))
    progress = Progress(current.total, start, config.train.batch_size)
    for step, batch in enumerate(batches.iterate(start, stop), start + 1):
        if plan.measured and (step - 1 - run.start) % measure_every == 0:
            state = _measure_rates(current, run, state, base, batches, step - 1)
        state, metrics = yield StepCall(run, cached, step_function, state, base, batch, step)
        if step % config.log.every_steps == 0 or step == stop:
            values = {k: float(v) for k, v in metrics.items()}
            if not math.isfinite(values["loss"]):
                raise UserError(
                    f"the loss is {values['loss']} at step {step}; lower "
                    f"optimizer.learning_rate, add warm-up, or set optimizer.clip_norm"
                )
            current.writer.write(step, "train", values)
            progress.update(step, values)
        else:
            progress.update(step)
        scores = None
        if validation is not None and (step % eval_every == 0 or step == stop):
            evaluated = state_lib.variables(state, base)
            scores = current.score(run, evaluated, validation)
            scores |= current.probe(run, evaluated, train, validation)
            del evaluated
            current.writer.write(step, "validation", scores)
            line = headline(setup.task.metric, scores)
            say(f"step {step}  validation {line}  loss {scores['loss']:.4f}")
        # The end of a phase is the start of the next, whose first checkpoint comes later.
        if scores or step % save_every == 0 or step == stop:
            # Only the last phase's weights can be kept as the best.
            ranked = scores and index == len(setup.phases) - 1
            metric = config.checkpoint.metric or setup.task.metric
            numbers = {metric: scores[metric]} if ranked else None
            about = {
                "phase": index,
                "next_step": step,
                "base_fingerprint": fingerprint,
                "snapshot": snapshot,
                # Copies: the file is written while the run goes on.
                "audits": list(current.audits),
                "probes": list(current.probes),
                "train_flops": list(current.train_flops),
            }
            current.checkpoints.save(state, settled, about, numbers)
    progress.close()

    # 5. Audit of the weights as trained, before anything is averaged or selected.
    trained = state_lib.variables(state, base, averaged=False)
    counts = audit_lib.audit(
        plan, before, trained, _idle(plan, state),
        steps=run.steps, reached=lambda: reached(state.opt_state),
    )  # fmt: skip
    current.audits.append(counts)
    current.train_flops.append(current.costs[-1].flops * run.steps)
    last = index == len(setup.phases) - 1
    # An average is for evaluation and artifact; the next phase goes on from the weights themselves.
    current.variables = state_lib.variables(state, base, averaged=last)
    current.state = (run, state)


def best_variables(current: Run) -> tuple[dict[str, Any], int]:
    """Variables of the best checkpoint of the last phase, and its step."""
    step = current.checkpoints.best_step
    meta = current.checkpoints.read_meta(step)
    run = current.phase_run(len(current.setup.phases) - 1)
    anchor = run.anchor(tree.unflatten(current.anchor))
    _, base = run.create_state(current.variables, anchor, current.shared.once)
    state, settled = current.checkpoints.restore(
        run.abstract_state(anchor)[0],
        _settled(current.settled, base),
        meta["base_fingerprint"],
        step,
    )
    return state_lib.variables(state, _put(base, settled)), step


def _drawn(plan: Any) -> set[str]:
    """Delta leaves that do not train: drawn or computed once, never the weight file's."""
    return {f"params/{leaf.path}" for leaf in plan.leaves if leaf.delta and not leaf.trains}


def _flat_base(base: state_lib.Frozen) -> dict[str, Any]:
    return tree.flatten({"params": base.params, "batch_stats": base.stats})


def _settled(paths: set[str], base: state_lib.Frozen) -> dict[str, Any]:
    return {p: x for p, x in _flat_base(base).items() if p in paths}


def _fingerprint(paths: set[str], base: state_lib.Frozen) -> str:
    rest = {p: x for p, x in _flat_base(base).items() if p not in paths}
    return tree.fingerprint(tree.unflatten(rest))


def _put(base: state_lib.Frozen, settled: dict[str, Any]) -> state_lib.Frozen:
    flat = tree.unflatten({**_flat_base(base), **settled})
    return dataclasses.replace(
        base, params=flat.get("params", {}), stats=flat.get("batch_stats", {})
    )


def _measure_rates(
    current: Run,
    run: PhaseRun,
    state: state_lib.State,
    base: state_lib.Frozen,
    batches: TrainBatches,
    step: int,
) -> state_lib.State:
    statistic, settings = run.plan.measured
    options = dict(settings)
    count = options.pop("batches")
    ahead = (current.place(batches.batch(step + i)) for i in range(count))
    gradient = current.shared.once(("importance", run.index), lambda: importance.make_gradient(run))
    values = importance.measure(run, state, base, ahead, gradient)[statistic]
    rates = importance.leaf_rates(values, **options)
    say(
        f"step {step}: rates by {statistic}, highest at "
        f"{max(rates, key=rates.get)}, {sum(r > 0 for r in rates.values())} leaves train"
    )
    declared = run.plan.of_trainable("lr")
    new = tree.map_with_path(
        lambda path, old, own: jax.device_put(np.float32(own * rates[path]), old.sharding),
        state.hyper["leaf_lr"],
        declared,
    )
    return dataclasses.replace(state, hyper={**state.hyper, "leaf_lr": new})


def _idle(plan: Any, state: state_lib.State) -> set[str]:
    """Leaves whose measured rate is 0, which therefore need not have moved."""
    if not plan.measured:
        return set()
    return {p for p, x in tree.flatten(state.hyper["leaf_lr"]).items() if float(x) == 0}

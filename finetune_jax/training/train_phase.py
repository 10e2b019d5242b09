"""A trained phase: state, cached prefix, compiled step, steps, audit."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import config as config_lib
from finetune_jax import tree
from finetune_jax.data.batches import TrainBatches
from finetune_jax.data.examples import ActivationExamples, Examples
from finetune_jax.evaluation.scores import NonFinitePredictions, headline
from finetune_jax.hosts import largest
from finetune_jax.interruption import Interrupted, held, signal_number
from finetune_jax.progress import Progress, clock, say
from finetune_jax.schemes import Plan
from finetune_jax.training import audit as audit_lib
from finetune_jax.training import importance
from finetune_jax.training import state as state_lib
from finetune_jax.training.bad_step import TakenStep, check_step, handle_evaluation
from finetune_jax.training.cost import measure
from finetune_jax.training.interval import GroupRates, Interval, times_of
from finetune_jax.training.optimizer import reached
from finetune_jax.training.pace import Pace
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.prefix_cache import is_read_often
from finetune_jax.training.run import Run
from finetune_jax.training.state import Frozen, State
from finetune_jax.training.step import Metrics
from finetune_jax.training.step_request import StepRequest


def train_phase(
    run: Run, index: int, meta: dict[str, Any] | None
) -> Generator[StepRequest, tuple[State, Metrics], None]:
    """Trains one phase; yields a request for every step and is sent its (state, metrics).

    The driver decides how a step is computed: by itself, or together with steps of other arms.

    Args:
      run: run with the variables at the start of the phase, deltas included; at the end of the
        phase it holds the variables at this point.
      index: number of the phase.
      meta: meta data of the checkpoint to continue from, if the checkpoint is of this phase.
    """
    phase = run.phase(index)
    # 1. State and frozen half, with the values that survive from the phase before.
    training = _start(run, phase, meta)
    # 2. Activations after the frozen prefix, where they are read more than once.
    train, validation = _splits(run, training)
    # 3. Compile.
    step = _compile(run, training, cached=isinstance(train, ActivationExamples))
    # 4. Steps.
    with held():  # a signal ends the run after a step, see `_stop_if_asked`
        yield from _train(run, training, step, train, validation)
    # 5. Audit of the weights as trained, before anything is averaged or selected.
    _audit(run, training)
    # An average is for evaluation and artifact; the next phase continues from the weights.
    last = index == run.last_phase
    run.variables = state_lib.variables(training.state, training.frozen, averaged=last)
    run.previous = (phase, training.state)


@dataclasses.dataclass
class _Training:
    """A phase that trains.

    Attributes:
      phase: the phase.
      state: trainable half after the latest step.
      frozen: frozen half.
      anchor: values that L2-SP pulls towards.
      start: step of the run at which this process starts to train.
      modified: frozen leaves that do not hold the values of the weight file, by path with the
        collection in front. Every checkpoint holds these leaves.
      fingerprint: fingerprint of the other frozen leaves.
      checksums: checksums of all leaves before the phase, by path with the collection in front.
      interval: the steps since the last log.
    """

    phase: PhaseRun
    state: State
    frozen: Frozen
    anchor: dict[str, Any]
    start: int
    modified: dict[str, Any]
    fingerprint: str
    checksums: dict[str, str]
    interval: Interval = dataclasses.field(default_factory=Interval)

    def variables(self) -> dict[str, Any]:
        """The variables of both halves, not averaged."""
        return state_lib.variables(self.state, self.frozen, averaged=False)


def _start(run: Run, phase: PhaseRun, meta: dict[str, Any] | None) -> _Training:
    """Creates state and frozen half, from a checkpoint if `meta` is given."""
    run.anchor_deltas(phase.plan)
    anchor = phase.anchor(tree.unflatten(run.anchor))
    create = run.caches.create_states.get(
        phase.index, lambda: phase.compile_create(run.variables, anchor)
    )
    state, frozen = phase.create_state(run.variables, anchor, create)
    if run.previous is not None:
        state = phase.carry(*run.previous, state)
    elif phase.index:
        state = dataclasses.replace(state, step=state.step + phase.start)
    run.previous = None
    paths = run.modified | _untrained_deltas(phase.plan)
    training = _Training(
        phase,
        state,
        frozen,
        anchor,
        phase.start,
        frozen.leaves(paths),
        frozen.fingerprint(without=paths),
        audit_lib.snapshot(state_lib.variables(state, frozen, averaged=False)),
    )
    run.variables = {}  # so that no frozen leaf is held twice during training
    if meta:
        training.state, training.modified = run.checkpoints.restore(
            phase.abstract_state(anchor)[0], training.modified, training.fingerprint
        )
        training.frozen = frozen.with_leaves(training.modified)
        training.start = meta["next_step"]
        training.checksums |= meta["snapshot"]
        training.interval = Interval.from_json(meta.get("interval", {}))
        say(f"resuming from step {training.start}")
    training.frozen = run.caches.deduplicate(training.frozen, training.checksums)
    return training


def _splits(run: Run, training: _Training) -> tuple[Examples, Examples | None]:
    """The training split and, if there is one, the validation split, as activations if cached.

    A resumed run decides as the uninterrupted run did: other programs would give other bits.
    """
    phase = training.phase
    train, validation = run.splits["train"], run.splits.get("validation")
    if is_read_often(run.setup, phase.steps, len(train), run.caches.arms):
        variables = training.variables()
        train = run.cached_split(phase, variables, "train")
        if validation is not None:
            validation = run.cached_split(phase, variables, "validation")
    return train, validation


def _compile(run: Run, training: _Training, *, cached: bool) -> jax.stages.Compiled:
    """The compiled train step, whose cost is appended to ``run.costs``."""
    phase = training.phase

    def compile_step() -> jax.stages.Compiled:
        say(f"compiling the train step for {phase.plan.scheme}")
        return phase.compile_train_step(training.anchor, cached=cached)

    step = run.caches.train_steps.get((phase.index, cached), compile_step)
    run.costs.append(measure(step, training.state, run.setup.config.train.accumulate))
    return step


def _train(
    run: Run,
    training: _Training,
    step: jax.stages.Compiled,
    train: Examples,
    validation: Examples | None,
) -> Generator[StepRequest, tuple[State, Metrics], None]:
    """Trains to the end of the phase, with logs, evaluations and checkpoints."""
    config, phase = run.setup.config, training.phase
    cached = isinstance(train, ActivationExamples)
    batches, shift = run.train_batches(train), run.watch.shift
    eval_every, log_every = run.evaluate_every, run.log_every
    save_every = config.checkpoint.every_steps or eval_every
    measure_every = max(1, round(len(run.splits["train"]) / config.train.batch_size))
    start, stop = training.start, phase.start + phase.steps
    progress, pace, latest = Progress(run.total, start), run.pace(start), dict[str, float]()
    rates, interval = GroupRates(phase), training.interval
    interval.start()
    for number, batch in enumerate(batches.iterate(start + shift, stop + shift), start + 1):
        if phase.plan.measured and (number - 1 - phase.start) % measure_every == 0:
            training.state = _with_measured_rates(run, training, batches, number - 1 + shift)
        searching = run.watch.searching(number)
        # A copy, because the step donates its state.
        before = jax.tree.map(jnp.copy, training.state) if searching else None
        training.state, metrics = yield StepRequest(
            phase, cached, step, training.state, training.frozen, batch, number, number + shift
        )
        run.watch.note(number, metrics)
        interval.note(metrics)
        pace.note(number, metrics)
        logs = number % log_every == 0 or number == stop
        evaluates = validation is not None and (number % eval_every == 0 or number == stop)
        # The variables at the end of a phase start the next phase, which saves its first
        # checkpoint only later.
        saves = evaluates or number % save_every == 0 or number == stop
        taken = TakenStep(
            phase, number, batches, cached, before, training.state, metrics, training.modified
        )
        if logs or saves or searching:
            check_step(run, taken, state=saves or searching)
        if logs:
            latest = _log(run, training, number, rates)
            pace.ended(number)
            progress.log(_line(run, pace, latest))
        progress.move(pace.finished, functools.partial(_line, run, pace, latest))
        if saves:
            interval.pause()
        if evaluates:
            pace.pause()
        scores = None
        if validation is not None and evaluates:
            try:
                scores = _evaluate(run, training, number, train, validation, rates)
            except NonFinitePredictions as error:
                handle_evaluation(run, number, error)
        if saves:
            _save(run, training, number, scores)
            interval.start()
        pace.resume()
        _stop_if_asked(run, training, taken, saved=saves)
    progress.close(pace.finished, _line(run, pace, latest))


def _log(run: Run, training: _Training, number: int, rates: GroupRates) -> dict[str, float]:
    """Writes the means of the steps since the last log, and returns what is printed of them.

    The row also has the epoch, the learning rates of step `number`, and the time of the steps.
    """
    interval = training.interval
    interval.pause()
    values, seconds = interval.means(), interval.seconds
    examples = interval.steps * run.setup.config.train.batch_size
    speed = examples / max(seconds, 1e-9)
    place = {"epoch": run.epoch(number), **rates.at(number - 1, training.state)}
    times = {"seconds": seconds, "examples_per_second": speed}
    run.writer.write(number, "train", {**values, **place, **times})
    interval.clear()
    interval.start()
    shown = {name: x for name, x in values.items() if name != "grad_norm"}
    return {**shown, "examples_per_second": speed}


def _line(run: Run, pace: Pace, latest: dict[str, float]) -> str:
    """Where a run is: step, epoch, the latest means, examples per second and the time left.

    Args:
      run: the run.
      pace: the steps that have ended.
      latest: result of the latest `_log`; empty before the first.
    """
    values = dict(latest)
    speed = values.pop("examples_per_second", pace.examples_per_second)
    epochs = f"{run.epoch(pace.finished):.3g}/{run.epoch(run.total):.3g}"
    parts = [f"step {pace.finished}/{run.total}", f"epoch {epochs}"]
    parts += [f"{name} {x:.4f}" for name, x in values.items() if math.isfinite(x)]
    unit = f"{run.setup.preprocess.kind}s"
    parts += (
        [f"{speed:.0f} {unit}/s" if speed >= 100 else f"{speed:.3g} {unit}/s"]
        if math.isfinite(speed)
        else []
    )
    return "  ".join([*parts, f"{clock(pace.seconds_left)} left"])


def _evaluate(
    run: Run,
    training: _Training,
    number: int,
    train: Examples,
    validation: Examples,
    rates: GroupRates,
) -> dict[str, Any]:
    """Validation scores after step `number`, which are written and printed."""
    began = time.perf_counter()
    variables = state_lib.variables(training.state, training.frozen)
    scores = run.score(training.phase, variables, validation)
    scores |= run.probe(training.phase, variables, train, validation)
    place = {"epoch": run.epoch(number), **rates.at(number - 1, training.state)}
    run.writer.write(number, "validation", {**scores, **place, **times_of(began, len(validation))})
    line = headline(run.setup.task.metric, scores)
    say(f"step {number}  validation {line}  loss {scores['loss']:.4f}")
    return scores


def _save(run: Run, training: _Training, number: int, scores: dict[str, Any] | None) -> None:
    """Starts to write a checkpoint after step `number`."""
    if run.lock:
        run.lock.require()
    plan, checksums = training.phase.plan, training.checksums
    changing = (
        {f"params/{p}" for p in plan.trainable}
        | {f"batch_stats/{p}" for p in plan.tracked_statistics}
        | training.modified.keys()
    )
    meta = {
        "phase": training.phase.index,
        "next_step": number,
        "base_fingerprint": training.fingerprint,
        "snapshot": {path: checksums[path] for path in changing},
        # Copies, because the file is written while the run goes on.
        "audits": list(run.audits),
        "probes": list(run.solver_reports),
        "train_flops": list(run.train_flops),
        "config": config_lib.to_json(run.setup.config),
        "made_of": run.made_of,
        "accepted": run.accepted,
        "nonfinite": run.watch.to_json(),
        "interval": training.interval.to_json(),
    }
    metric = run.setup.config.checkpoint.metric or run.setup.task.metric
    # Only weights of the last phase can be kept as the best, so other checkpoints get no score.
    ranked = bool(scores) and training.phase.index == run.last_phase
    run.checkpoints.save(
        training.state,
        training.modified,
        meta,
        # A checkpoint with an undefined score is not ranked.
        {metric: scores[metric]} if scores and ranked and math.isfinite(scores[metric]) else None,
    )


def _stop_if_asked(run: Run, training: _Training, taken: TakenStep, *, saved: bool) -> None:
    """Saves a checkpoint after a step and raises `Interrupted` if a signal has come.

    All processes of a run stop at the same step: one that logs, because they wait for each other
    there anyhow.
    """
    number, asked = taken.number, signal_number()
    if jax.process_count() > 1:
        if not saved and number % run.log_every:
            return
        asked = largest(asked)
    if not asked:
        return
    if not saved:
        check_step(run, taken, state=True)
        _save(run, training, number, None)
    run.checkpoints.wait()
    raise Interrupted(
        asked,
        f"interrupted at step {number} of {run.total}, saved; the same command continues",
        saved=True,
    )


def _audit(run: Run, training: _Training) -> None:
    """Audits the phase; appends its counts and FLOPs to the run's."""
    phase, state = training.phase, training.state
    counts = audit_lib.audit(
        phase.plan, training.checksums, training.variables(), _idle(phase.plan, state),
        steps=phase.steps, reached=lambda: reached(state.opt_state),
    )  # fmt: skip
    run.audits.append(counts)
    run.train_flops.append(run.costs[-1].flops * phase.steps)


def _untrained_deltas(plan: Plan) -> set[str]:
    """Delta leaves that do not train: drawn or computed once, they are in no weight file."""
    return {f"params/{leaf.path}" for leaf in plan.leaves if leaf.delta and not leaf.trains}


def _with_measured_rates(run: Run, training: _Training, batches: TrainBatches, step: int) -> State:
    """The state with learning rates from the gradients of the next batches."""
    phase, state = training.phase, training.state
    assert phase.plan.measured is not None
    statistic, settings = phase.plan.measured
    options = dict(settings)
    count = int(options.pop("batches"))
    ahead = (run.place(batches.batch(step + i)) for i in range(count))
    gradient = run.caches.gradients.get(phase.index, lambda: importance.make_gradient(phase))
    values = importance.measure(phase, state, training.frozen, ahead, gradient)[statistic]
    rates = importance.leaf_rates(values, **options)
    say(
        f"step {step}: rates by {statistic}, highest at {max(rates, key=lambda p: rates[p])}, "
        f"{sum(r > 0 for r in rates.values())} leaves train"
    )
    new = tree.map_with_path(
        lambda path, old, factor: jax.device_put(np.float32(factor * rates[path]), old.sharding),
        state.hyper["leaf_lr"],
        phase.plan.of_trainable("lr"),
    )
    return dataclasses.replace(state, hyper={**state.hyper, "leaf_lr": new})


def _idle(plan: Plan, state: State) -> set[str]:
    """Leaves whose measured rate is 0, which therefore need not have moved."""
    if not plan.measured:
        return set()
    return {p for p, x in tree.flatten(state.hyper["leaf_lr"]).items() if float(x) == 0}

"""The loop: phases of batches, steps, scores, checkpoints and audit; then the artifact."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import config as config_lib
from finetune_jax import tree
from finetune_jax.artifact import save_artifact
from finetune_jax.data.batches import TrainBatches, cached, eval_batches
from finetune_jax.data.sources import Examples
from finetune_jax.errors import UserError
from finetune_jax.evaluation.scores import evaluate
from finetune_jax.files import write_json
from finetune_jax.models import MODELS
from finetune_jax.reporting.progress import MetricsWriter, Progress, say
from finetune_jax.training import audit as audit_lib
from finetune_jax.training import importance, probe
from finetune_jax.training import state as state_lib
from finetune_jax.training.checkpoints import Checkpoints
from finetune_jax.training.cost import measure
from finetune_jax.training.experiment import Experiment, load_variables, reestimate
from finetune_jax.training.mesh import put_batch
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.prefix_cache import cache_prefix

_REESTIMATE_BATCHES = 16


def open_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Creates a run's folder, or accepts one that holds the same config.

    Raises:
      UserError: not writable, or the folder of another config (with the difference).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe_file = workdir / ".writable"
        probe_file.write_text("")
        probe_file.unlink()
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot write there: {error.strerror}") from None
    path = workdir / "config.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path} is damaged; remove it or use another --workdir") from None
        lines = config_lib.difference(old, config)
        if lines:
            raise UserError(
                f"--workdir={workdir} belongs to a run of another config, which is left as it is:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nuse another --workdir, or the config of that run to continue it"
            )
    write_json(path, config)


@dataclasses.dataclass
class Run:
    """A run in progress: what its phases share.

    Attributes:
      experiment: resolved config.
      workdir: run folder.
      splits: decoded examples by split name.
      starts: first step of each phase.
      lengths: steps of each phase.
      variables: whole variables at the start of the current phase.
      settled: paths, with their collection, of leaves that are no longer the weight file's.
      anchor: params that came from the weight file, flat; empty when L2-SP is off.
      checkpoints: of the run.
      writer: of its metrics.
      state: of the last trained phase, with its `PhaseRun`.
      audits: counts of each phase.
      probes: reports of solved phases.
      costs: compiled figures of each trained phase.
    """

    experiment: Experiment
    workdir: Path
    splits: dict[str, Examples]
    starts: list[int]
    lengths: list[int]
    variables: dict[str, Any]
    settled: set[str]
    anchor: dict[str, Any]
    checkpoints: Checkpoints
    writer: MetricsWriter
    state: tuple[PhaseRun, state_lib.State] | None = None
    audits: list[dict[str, int]] = dataclasses.field(default_factory=list)
    probes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    costs: list[Any] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return sum(self.lengths)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts a host batch on the mesh."""
        return put_batch(batch, self.experiment.mesh)

    def phase_run(self, index: int) -> PhaseRun:
        """A phase at its place."""
        return PhaseRun(self.experiment, index, self.starts[index], self.lengths[index])

    def train_batches(self, examples: Examples) -> TrainBatches:
        """The run's order over some examples."""
        config = self.experiment.config
        return TrainBatches(
            examples,
            self.experiment.preprocess,
            config.train.batch_size,
            config.seed,
            jax.process_index(),
            jax.process_count(),
        )


def run(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Trains to the end, continuing from the latest checkpoint if there is one.

    Args:
      experiment: resolved config.
      workdir: run folder; gets ``config.json``, ``plan.json``, ``manifest.json``,
        ``metrics.jsonl``, TensorBoard events, ``checkpoints/``, ``artifact/`` and ``result.json``.

    Returns:
      Final figures, as in ``result.json``: validation and test scores, cost, audit counts,
      seconds.

    Raises:
      UserError: bad input.
      audit.AuditError: a frozen leaf changed or a trainable one did not move.
    """
    config, phases = experiment.config, experiment.phases
    open_workdir(workdir, config_lib.to_json(config))
    plan_json = experiment.plan.to_json()
    write_json(workdir / "plan.json", {**plan_json, "phases": [p.to_json() for p in phases]})

    # 1. Data, decoded once if it fits in memory.
    splits = {}
    for name in ("train", "validation", "test"):
        text = config.data[name]
        if text:
            splits[name] = cached(
                experiment.source.read(text), experiment.preprocess, config.data.cache_bytes
            )
    lengths = experiment.phase_steps(len(splits["train"]))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]

    # 2. Weights, surgery, manifest.
    variables, manifest = load_variables(experiment)
    write_json(workdir / "manifest.json", manifest)
    fresh = {row["leaf"] for row in manifest["rows"] if row["decision"] == "reinitialised"}
    anchored = config.optimizer.l2_sp or config.optimizer.l2_sp_head
    anchor = {
        p: x
        for p, x in tree.flatten(variables["params"]).items()
        if anchored and f"params/{p}" not in fresh
    }
    settled: set[str] = set()
    if experiment.plan.batch_norm == "reestimate":
        batches = TrainBatches(
            splits["train"], experiment.preprocess, config.train.batch_size, config.seed
        )
        count = min(_REESTIMATE_BATCHES, math.ceil(len(splits["train"]) / config.train.batch_size))
        images = [put_batch(batches.batch(i), experiment.mesh) for i in range(count)]
        variables = reestimate(experiment, variables, images)
        settled |= {f"batch_stats/{p}" for p in tree.flatten(variables["batch_stats"])}

    # 3. The latest checkpoint, if there is one, says with which phase to go on.
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        [phase.plan for phase in phases],
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        metric=config.checkpoint.metric,
    )
    resumed = checkpoints.latest_step
    meta = checkpoints.read_meta() if resumed is not None else None
    first = meta["phase"] if meta else 0

    # 4. Phases.
    began = time.monotonic()
    with MetricsWriter(
        workdir, tensorboard=config.log.tensorboard, resume_step=resumed or 0
    ) as writer:
        current = Run(
            experiment, workdir, splits, starts, lengths, variables, settled, anchor, checkpoints,
            writer,
        )  # fmt: skip
        del variables
        for index in range(first):
            current.variables = _with_deltas(current, index)
            current.settled |= _changes(current, index)
        if meta:
            current.audits, current.probes = meta["audits"], meta["probes"]
        for index in range(first, len(phases)):
            if len(phases) > 1:
                say(f"phase {index + 1} of {len(phases)}: {phases[index].plan.scheme}")
            current.variables = _with_deltas(current, index)
            if phases[index].solve:
                _solve_phase(current, index)
            else:
                _train_phase(current, index, meta if index == first else None)
            current.settled |= _changes(current, index)
        checkpoints.wait()

        # 5. Which weights to keep, and their scores.
        final, selected = current.variables, current.total
        if config.artifact.select == "best" and checkpoints.best_step is not None:
            final, selected = _best(current)
        result: dict[str, Any] = {
            "scheme": experiment.scheme,
            "steps": current.total,
            "selected_step": selected,
            "seconds": time.monotonic() - began,
            "cost": vars(current.costs[-1]) if current.costs else None,
            "audit": current.audits[-1],
            "phases": [
                {"scheme": p.plan.scheme, "steps": n, "audit": a}
                for p, n, a in zip(phases, lengths, current.audits, strict=True)
            ],
            "probes": current.probes,
        }
        last = current.phase_run(len(phases) - 1)
        step = last.compile_eval_step(config.eval.batch_size, final)
        for split in ("validation", "test"):
            if split in splits:
                result[split] = _score(current, step, final, splits[split])
        if "test" in result:
            writer.write(current.total, "test", result["test"])
    checkpoints.close()

    # 6. Artifact.
    save_artifact(
        workdir / "artifact",
        variables=jax.tree.map(np.asarray, final),
        model={
            "family": MODELS[config.model.name].family,
            "name": config.model.name,
            "num_classes": experiment.task.head_size,
            "image_size": experiment.preprocess.size,
            "dtype": config.model.dtype,
        },
        deltas=experiment.plan.deltas,
        task=experiment.task,
        preprocess=experiment.preprocess,
        plan=plan_json,
        base={"file": manifest["file"], "sha256": manifest.get("sha256")},
        scores={split: result[split] for split in ("validation", "test") if split in result},
        contents=config.artifact.contents,
        changed=current.settled,
    )
    write_json(workdir / "result.json", result)
    return result


def _with_deltas(current: Run, index: int) -> dict[str, Any]:
    """The variables with the deltas of a phase at their start values."""
    plan = current.experiment.phases[index].plan
    key = jax.random.fold_in(jax.random.key(current.experiment.config.seed), 1)
    params = plan.add_deltas(current.variables["params"], key)
    return {**current.variables, "params": params}


def _changes(current: Run, index: int) -> set[str]:
    """Paths, with their collection, that the weight file no longer speaks for after a phase."""
    plan = current.experiment.phases[index].plan
    return (
        {f"params/{p}" for p in plan.trainable}
        | {f"params/{leaf.path}" for leaf in plan.leaves if leaf.delta}
        | {f"batch_stats/{p}" for p in plan.tracked_statistics}
    )


def _score(current: Run, step: Any, variables: Any, examples: Examples) -> dict[str, Any]:
    return evaluate(
        step,
        variables,
        examples,
        current.experiment.preprocess,
        batch_size=current.experiment.config.eval.batch_size,
        place=current.place,
    )


def _features(current: Run, index: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features f32[n, width] entering the head, and labels i32[n], of a split."""
    experiment, run_ = current.experiment, current.phase_run(index)
    forward = jax.jit(
        lambda v, x: run_.model.apply(v, experiment.preprocess.device(x), stop="head")
    )
    rows, labels = [], []
    size = experiment.config.eval.batch_size
    for batch in eval_batches(current.splits[split], experiment.preprocess, size):
        real = batch.pop("mask") > 0
        placed = current.place(batch)
        rows.append(np.asarray(forward(current.variables, placed["image"]))[real])
        labels.append(batch["label"][real])
    return np.concatenate(rows), np.concatenate(labels)


def _solve_phase(current: Run, index: int) -> None:
    phase = current.experiment.phases[index]
    if "validation" not in current.splits:
        raise UserError("phase(solve=…) chooses on validation: set data.validation")
    before = audit_lib.snapshot(current.variables)
    head, report = probe.solve(
        phase.solve,
        _features(current, index, "train"),
        _features(current, index, "validation"),
        current.experiment.task.head_size,
    )
    chosen = report["chosen"]
    say(
        f"head solved by {phase.solve}: strength {chosen['strength']:.3g}, validation accuracy "
        f"{chosen['accuracy']:.4f}"
    )
    params = {**current.variables["params"], "head": head}
    current.variables = {**current.variables, "params": params}
    current.audits.append(audit_lib.audit(phase.plan, before, current.variables))
    current.probes.append(report)
    current.writer.write(current.starts[index], "probe", chosen)
    current.state = None


def _train_phase(current: Run, index: int, meta: dict[str, Any] | None) -> None:
    experiment, config = current.experiment, current.experiment.config
    run_ = current.phase_run(index)
    plan, stop = run_.plan, run_.start + run_.steps

    # 1. State and base, with what survives from the phase before.
    anchor = run_.anchor(tree.unflatten(current.anchor))
    state, base = run_.create_state(current.variables, anchor)
    if current.state is not None:
        state = run_.carry(*current.state, state)
    elif index:
        state = dataclasses.replace(state, step=state.step + run_.start)
    current.state = None
    settled = _settled(current.settled | _drawn(plan), base)
    fingerprint = _fingerprint(current.settled | _drawn(plan), base)
    before = audit_lib.snapshot(state_lib.variables(state, base, averaged=False))
    current.variables = {}  # so that no frozen leaf is held twice while training
    start = run_.start
    if meta:
        state, settled = current.checkpoints.restore(
            run_.abstract_state(anchor)[0], settled, fingerprint
        )
        base = _put(base, settled)
        start = meta["next_step"]
        before = {**before, **meta["snapshot"]}
        say(f"resuming from step {start}")
    snapshot = {
        p: before[p]
        for p in {f"params/{q}" for q in plan.trainable}
        | {f"batch_stats/{q}" for q in plan.tracked_statistics}
        | settled.keys()
    }

    # 2. Activations after the frozen prefix, where they will be read more than once.
    splits = dict(current.splits)
    whole = state_lib.variables(state, base, averaged=False)
    n = len(splits["train"])
    if (stop - start) * config.train.batch_size > 1.5 * n:
        for name in ("train", "validation"):
            if name in splits:
                splits[name] = cache_prefix(
                    run_,
                    whole,
                    splits[name],
                    config.data[name],
                    current.place,
                    training=name == "train",
                )
    cached_train = splits["train"] is not current.splits["train"]
    cached_eval = (
        "validation" in splits and splits["validation"] is not current.splits["validation"]
    )
    # 3. Compile.
    say(f"compiling the train step for {plan.scheme}")
    train_step = run_.compile_train_step(anchor, cached=cached_train)
    current.costs.append(measure(train_step, state, config.train.accumulate))
    eval_step = run_.compile_eval_step(config.eval.batch_size, whole, cached=cached_eval)
    del whole  # before the step donates what it holds

    # 4. Steps.
    batches = current.train_batches(splits["train"])
    steps_per_epoch = n / config.train.batch_size
    eval_every = max(1, round(config.eval.every_epochs * steps_per_epoch))
    save_every = config.checkpoint.every_steps or eval_every
    measure_every = max(1, round(steps_per_epoch))
    progress = Progress(current.total, start, config.train.batch_size)
    for step, batch in enumerate(batches.iterate(start, stop), start + 1):
        if plan.measured and (step - 1 - run_.start) % measure_every == 0:
            state = _measure_rates(current, run_, state, base, batches, step - 1)
        state, metrics = train_step(state, base, current.place(batch))
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
        if "validation" in splits and (step % eval_every == 0 or step == stop):
            variables = state_lib.variables(state, base)
            scores = _score(current, eval_step, variables, splits["validation"])
            current.writer.write(step, "validation", scores)
            say(
                f"step {step}  validation accuracy {scores['accuracy']:.4f} "
                f"[{scores['accuracy_low']:.4f}, {scores['accuracy_high']:.4f}] "
                f"n={scores['n_scored']}  loss {scores['loss']:.4f}"
            )
        # The end of a phase is the start of the next, whose first checkpoint comes later.
        if scores or step % save_every == 0 or step == stop:
            numbers = {k: scores[k] for k in ("accuracy", "loss")} if scores else None
            about = {
                "phase": index,
                "next_step": step,
                "base_fingerprint": fingerprint,
                "snapshot": snapshot,
                "audits": current.audits,
                "probes": current.probes,
            }
            current.checkpoints.save(state, settled, about, numbers)
    progress.close()

    # 5. Audit of the weights as trained, before anything is averaged or selected.
    trained = state_lib.variables(state, base, averaged=False)
    idle = _idle(plan, state)
    current.audits.append(audit_lib.audit(plan, before, trained, idle))
    last = index == len(experiment.phases) - 1
    # An average is for evaluation and artifact; the next phase goes on from the weights themselves.
    current.variables = state_lib.variables(state, base, averaged=last)
    current.state = (run_, state)


def _drawn(plan: Any) -> set[str]:
    """Delta leaves that do not train: drawn or computed once, never the weight file's."""
    return {f"params/{leaf.path}" for leaf in plan.leaves if leaf.delta and not leaf.trains}


def _flat_base(base: state_lib.Base) -> dict[str, Any]:
    return tree.flatten({"params": base.params, "batch_stats": base.stats})


def _settled(paths: set[str], base: state_lib.Base) -> dict[str, Any]:
    return {p: x for p, x in _flat_base(base).items() if p in paths}


def _fingerprint(paths: set[str], base: state_lib.Base) -> str:
    rest = {p: np.asarray(x) for p, x in _flat_base(base).items() if p not in paths}
    return tree.fingerprint(tree.unflatten(rest))


def _put(base: state_lib.Base, settled: dict[str, Any]) -> state_lib.Base:
    flat = tree.unflatten({**_flat_base(base), **settled})
    return dataclasses.replace(
        base, params=flat.get("params", {}), stats=flat.get("batch_stats", {})
    )


def _measure_rates(
    current: Run,
    run_: PhaseRun,
    state: state_lib.State,
    base: state_lib.Base,
    batches: TrainBatches,
    step: int,
) -> state_lib.State:
    statistic, settings = run_.plan.measured
    options = dict(settings)
    count = options.pop("batches")
    ahead = (current.place(batches.batch(step + i)) for i in range(count))
    values = importance.measure(run_, state, base, ahead)[statistic]
    rates = importance.leaf_rates(values, **options)
    say(
        f"step {step}: rates by {statistic}, highest at "
        f"{max(rates, key=rates.get)}, {sum(r > 0 for r in rates.values())} leaves train"
    )
    declared = run_.plan.of_trainable("lr")
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


def _best(current: Run) -> tuple[dict[str, Any], int]:
    """Variables of the best checkpoint, and its step."""
    step = current.checkpoints.best_step
    meta = current.checkpoints.read_meta(step)
    index = len(current.experiment.phases) - 1
    if meta["phase"] != index:
        raise UserError(
            f"artifact.select=best: the best checkpoint (step {step}) is of phase "
            f"{meta['phase'] + 1}; only checkpoints of the last phase can be kept"
        )
    run_ = current.phase_run(index)
    anchor = run_.anchor(tree.unflatten(current.anchor))
    _, base = run_.create_state(current.variables, anchor)
    state, settled = current.checkpoints.restore(
        run_.abstract_state(anchor)[0],
        _settled(current.settled, base),
        meta["base_fingerprint"],
        step,
    )
    return state_lib.variables(state, _put(base, settled)), step

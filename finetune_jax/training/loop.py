"""The loop: batches, steps, metrics, evaluation, checkpoints, audit, artifact. One for all runs."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import config as config_lib
from finetune_jax.artifact import save_artifact
from finetune_jax.data.batches import TrainBatches, cached
from finetune_jax.errors import UserError
from finetune_jax.evaluation.scores import evaluate
from finetune_jax.files import write_json
from finetune_jax.models import MODELS
from finetune_jax.reporting.progress import MetricsWriter, Progress, say
from finetune_jax.training import audit as audit_lib
from finetune_jax.training import state as state_lib
from finetune_jax.training.checkpoints import Checkpoints, base_fingerprint
from finetune_jax.training.cost import measure
from finetune_jax.training.experiment import Experiment, load_variables, reestimate
from finetune_jax.training.mesh import put_batch, state_sharding

_REESTIMATE_BATCHES = 16


def open_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Creates a run's folder, or accepts one that holds the same config.

    Raises:
      UserError: not writable, or the folder of another config (with the difference).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.write_text("")
        probe.unlink()
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
    config = experiment.config
    open_workdir(workdir, config_lib.to_json(config))
    write_json(workdir / "plan.json", experiment.plan.to_json())

    # 1. Data, decoded once if it fits in memory.
    splits = {}
    for name in ("train", "validation", "test"):
        text = config.data[name]
        if text:
            splits[name] = cached(
                experiment.source.read(text), experiment.preprocess, config.data.cache_bytes
            )
    train = TrainBatches(
        splits["train"],
        experiment.preprocess,
        config.train.batch_size,
        config.seed,
        jax.process_index(),
        jax.process_count(),
    )
    steps_per_epoch = len(splits["train"]) / config.train.batch_size
    total = config.train.steps or max(1, round(config.train.epochs * steps_per_epoch))
    eval_every = max(1, round(config.eval.every_epochs * steps_per_epoch))
    save_every = config.checkpoint.every_steps or eval_every

    # 2. Weights, surgery, manifest.
    variables, manifest = load_variables(experiment)
    write_json(workdir / "manifest.json", manifest)

    def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return put_batch(batch, experiment.mesh)

    if experiment.plan.batch_norm == "reestimate":
        count = min(_REESTIMATE_BATCHES, math.ceil(steps_per_epoch))
        variables = reestimate(experiment, variables, [place(train.batch(i)) for i in range(count)])

    # 3. Plan and optimizer, state on the mesh, compiled steps.
    optimizer = experiment.optimizer(total)
    state, base = experiment.create_state(variables, optimizer)
    del variables
    before = audit_lib.snapshot(state_lib.variables(state, base, averaged=False))
    say(f"compiling the train step for {experiment.plan.scheme}")
    train_step, _ = experiment.compile_train_step(optimizer)
    eval_step = experiment.compile_eval_step(config.eval.batch_size)
    cost = measure(train_step, state)

    # 4. Restore.
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        experiment.plan,
        base_fingerprint(base),
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        metric=config.checkpoint.metric,
    )
    start = 0
    if checkpoints.latest_step is not None:
        state, data_state = checkpoints.restore(_abstract(state, experiment))
        start = data_state["next_step"]
        say(f"resuming from step {start}")

    def score(split: str) -> dict[str, Any]:
        return evaluate(
            eval_step,
            state_lib.variables(state, base),
            splits[split],
            experiment.preprocess,
            batch_size=config.eval.batch_size,
            place=place,
        )

    # 5. Steps.
    began = time.monotonic()
    progress = Progress(total, start, config.train.batch_size)
    with MetricsWriter(workdir, tensorboard=config.log.tensorboard, resume_step=start) as writer:
        for step, batch in enumerate(train.iterate(start, total), start + 1):
            state, metrics = train_step(state, base, place(batch))
            if step % config.log.every_steps == 0 or step == total:
                values = {k: float(v) for k, v in metrics.items()}
                if not math.isfinite(values["loss"]):
                    raise UserError(
                        f"the loss is {values['loss']} at step {step}; lower "
                        f"optimizer.learning_rate, add warm-up, or set optimizer.clip_norm"
                    )
                writer.write(step, "train", values)
                progress.update(step, values)
            else:
                progress.update(step)
            scores = None
            if "validation" in splits and (step % eval_every == 0 or step == total):
                scores = score("validation")
                writer.write(step, "validation", scores)
                say(
                    f"step {step}  validation accuracy {scores['accuracy']:.4f} "
                    f"[{scores['accuracy_low']:.4f}, {scores['accuracy_high']:.4f}] "
                    f"n={scores['n_scored']}  loss {scores['loss']:.4f}"
                )
            if scores or step % save_every == 0 or step == total:
                numbers = {k: scores[k] for k in ("accuracy", "loss")} if scores else None
                checkpoints.save(state, {"next_step": step}, numbers)
        progress.close()
        checkpoints.wait()

        # 6. Audit of the weights as trained, before anything is averaged or selected.
        checked = audit_lib.audit(
            experiment.plan, before, state_lib.variables(state, base, averaged=False)
        )
        if config.artifact.select == "best" and checkpoints.best_step is not None:
            state, _ = checkpoints.restore(_abstract(state, experiment), checkpoints.best_step)
        result: dict[str, Any] = {
            "scheme": experiment.plan.scheme,
            "steps": total,
            "selected_step": int(state.step),
            "seconds": time.monotonic() - began,
            "cost": vars(cost),
            "audit": checked,
        }
        for split in ("validation", "test"):
            if split in splits:
                result[split] = score(split)
        if "test" in result:
            writer.write(total, "test", result["test"])
    checkpoints.close()

    # 7. Artifact.
    plan = experiment.plan
    save_artifact(
        workdir / "artifact",
        variables=jax.tree.map(np.asarray, state_lib.variables(state, base)),
        model={
            "family": MODELS[config.model.name].family,
            "name": config.model.name,
            "num_classes": experiment.task.head_size,
            "image_size": experiment.preprocess.size,
            "dtype": config.model.dtype,
        },
        task=experiment.task,
        preprocess=experiment.preprocess,
        plan=plan.to_json(),
        base={"file": manifest["file"], "sha256": manifest.get("sha256")},
        scores={split: result[split] for split in ("validation", "test") if split in result},
        contents=config.artifact.contents,
        changed={f"params/{p}" for p in plan.trainable}
        | {
            f"batch_stats/{p}"
            for p in (
                plan.statistics if plan.batch_norm == "reestimate" else plan.tracked_statistics
            )
        },
    )
    write_json(workdir / "result.json", result)
    return result


def _abstract(state: state_lib.State, experiment: Experiment) -> state_lib.State:
    shardings = state_sharding(experiment.mesh, state)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )

"""A run from its config to its artifact: data, weights, phases, scores."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import config as config_lib
from finetune_jax import tree
from finetune_jax.artifact import save_artifact
from finetune_jax.data.batches import TrainBatches, cached, gather
from finetune_jax.data.skip import bad_images
from finetune_jax.data.sources import EncodedExamples, Examples
from finetune_jax.deltas import Adapted, merge
from finetune_jax.evaluation.batch_norm import reestimate
from finetune_jax.files import write_json
from finetune_jax.hosts import all_agree, is_primary, require_same
from finetune_jax.mesh import local_rows, put_batch
from finetune_jax.models import entry_of
from finetune_jax.progress import say
from finetune_jax.setup import Setup, load_variables
from finetune_jax.training.checkpoints import Checkpoints
from finetune_jax.training.folder import claim_workdir, finished_result, open_workdir
from finetune_jax.training.metrics_writer import MetricsWriter
from finetune_jax.training.run import Run
from finetune_jax.training.shared import Shared, StepCall
from finetune_jax.training.solve_phase import solve_phase
from finetune_jax.training.teacher import with_teacher
from finetune_jax.training.train_phase import best_variables, train_phase

_REESTIMATE_BATCHES = 16
_COMPARED_IMAGES = 32


def train(setup: Setup, workdir: Path) -> dict[str, Any]:
    """Trains to the end, continuing from the latest checkpoint if there is one.

    A run that has ended is left as it is; its figures are returned again.

    Args:
      setup: resolved config.
      workdir: run folder; gets ``config.json``, ``plan.json``, ``manifest.json``,
        ``left_out.json`` (bad images by split, if there are any), ``metrics.jsonl``, TensorBoard
        events, ``checkpoints/``, ``artifact/`` and ``result.json``.

    Returns:
      Final figures, as in ``result.json``: validation and test scores, cost, audit counts,
      seconds.

    Raises:
      UserError: bad input.
      audit.AuditError: a frozen leaf changed or a trainable one did not move.
    """
    arm = steps(setup, workdir, Shared())
    try:
        call = next(arm)
        while True:
            batch = put_batch(call.batch, setup.mesh)
            call = arm.send(call.step(call.state, call.base, batch))
    except StopIteration as end:
        return end.value


def steps(setup: Setup, workdir: Path, shared: Shared) -> Generator[StepCall, Any, dict[str, Any]]:
    """A run as a generator: yields each train step, is sent (state, metrics), returns its figures.

    Arguments, result and errors as for `run`; `shared` is what it has in common with other arms.
    """
    config, phases = setup.config, setup.phases
    open_workdir(workdir, config_lib.to_json(config))
    finished = finished_result(workdir)
    if all_agree(finished is not None):
        say(f"the run in {workdir} is finished; to train again, use another --workdir")
        return finished

    # 1. Data, decoded once if it fits in memory.
    names = [name for name in ("train", "validation", "test") if config.data[name]]
    opened = {
        name: shared.once(
            ("examples", name), lambda name=name: setup.source.read(config.data[name])
        )
        for name in names
    }
    left_out = {n: list(bad_images(x)) for n, x in opened.items() if bad_images(x)}
    splits = {
        name: shared.once(
            ("split", name),
            lambda name=name: cached(
                opened[name], setup.encode, config.data.cache_bytes, config.data.workers
            ),
        )
        for name in names
    }
    if setup.task.needs_fit:
        fitted = setup.task.fit(_targets(setup, splits["train"]))
        setup = dataclasses.replace(setup, task=fitted)
    setup = with_teacher(setup, shared.once)
    lengths = setup.phase_steps(len(splits["train"]))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]

    # 2. Weights, surgery, manifest.
    variables, manifest = load_variables(setup)
    say(_origin(setup, manifest))
    fresh = {row["leaf"] for row in manifest["rows"] if row["decision"] == "reinitialised"}
    anchored = config.optimizer.l2_sp or config.optimizer.l2_sp_head
    anchor = {
        p: x
        for p, x in tree.flatten(variables["params"]).items()
        if anchored and f"params/{p}" not in fresh
    }
    settled: set[str] = set()
    if setup.plan.batch_norm == "reestimate":
        batches = TrainBatches(
            splits["train"],
            setup.encode,
            config.train.batch_size,
            config.seed,
            local_rows(setup.mesh, config.train.batch_size),
        )
        count = min(_REESTIMATE_BATCHES, math.ceil(len(splits["train"]) / config.train.batch_size))
        some = [put_batch(batches.batch(i), setup.mesh) for i in range(count)]
        new = reestimate(setup.model, variables, some, setup.preprocess.device)
        variables = {**variables, "batch_stats": new}
        settled |= {f"batch_stats/{p}" for p in tree.flatten(variables["batch_stats"])}

    # 3. The latest checkpoint, if there is one, says with which phase to go on.
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        [phase.plan for phase in phases],
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        metric=config.checkpoint.metric or setup.task.metric,
        better="min" if config.checkpoint.metric == "loss" else setup.task.better,
    )
    resumed = checkpoints.latest_step
    meta = checkpoints.read_meta() if resumed is not None else None
    first = meta["phase"] if meta else 0
    require_same(
        {
            "config": config.to_json_best_effort(),
            "checkpoints": resumed,
            "examples": {name: len(examples) for name, examples in splits.items()},
            "bad images": left_out,
            "weight file": manifest.get("sha256"),
        }
    )

    # 4. All that was named exists and fits: from here on the folder is this config's.
    plan_json = setup.plan.to_json()
    if is_primary():
        claim_workdir(workdir, config_lib.to_json(config))
        write_json(workdir / "plan.json", {**plan_json, "phases": [p.to_json() for p in phases]})
        write_json(workdir / "manifest.json", manifest)
        if left_out:
            write_json(workdir / "left_out.json", left_out)

    # 5. Phases.
    began = time.monotonic()
    own = workdir if is_primary() else None
    with MetricsWriter(own, tensorboard=config.log.tensorboard, resume_step=resumed) as writer:
        current = Run(
            setup, workdir, shared, splits, starts, lengths, variables, settled, anchor,
            checkpoints, writer,
        )  # fmt: skip
        del variables
        for index in range(first):
            current.variables = _with_deltas(current, index)
            current.settled |= _changes(current, index)
        if meta:
            current.audits, current.probes = meta["audits"], meta["probes"]
            current.train_flops = meta["train_flops"]
        for index in range(first, len(phases)):
            if len(phases) > 1:
                say(f"phase {index + 1} of {len(phases)}: {phases[index].plan.scheme}")
            current.variables = _with_deltas(current, index)
            if phases[index].solve:
                solve_phase(current, index)
            else:
                yield from train_phase(current, index, meta if index == first else None)
            current.settled |= _changes(current, index)
        checkpoints.wait()

        # 6. Which weights to keep, and their scores.
        final, selected = current.variables, current.total
        if config.artifact.select == "best" and checkpoints.best_step is not None:
            final, selected = best_variables(current)
        result: dict[str, Any] = {
            "scheme": setup.scheme,
            "steps": current.total,
            "selected_step": selected,
            "seconds": time.monotonic() - began,
            "cost": vars(current.costs[-1]) if current.costs else None,
            "train_flops": sum(current.train_flops),
            **_counts(setup),
            "left_out": {name: len(lines) for name, lines in left_out.items()},
            "audit": current.audits[-1],
            "phases": [
                {"scheme": p.plan.scheme, "steps": n, "audit": a}
                for p, n, a in zip(phases, lengths, current.audits, strict=True)
            ],
            "probes": current.probes,
        }
        last = current.phase_run(len(phases) - 1)
        for split in ("validation", "test"):
            if split in splits:
                examples = splits[split]
                if shared.arms > 1:  # each arm reads it
                    examples = current.behind_prefix(last, final, split)
                result[split] = current.score(last, final, examples)
        if "test" in result:
            writer.write(current.total, "test", result["test"])
    checkpoints.close()

    # 7. Artifact.
    final = jax.tree.map(tree.on_host, final)
    deltas = setup.plan.deltas
    if config.artifact.merge and deltas:
        final, result["largest_logit_difference"] = _merged(current, final)
        deltas = ()
    if not is_primary():
        return result
    save_artifact(
        workdir / "artifact",
        variables=jax.tree.map(np.asarray, final),
        model={
            "family": entry_of(config.model.name).family,
            "name": config.model.name,
            "num_classes": setup.task.head_size,
            "image_size": setup.preprocess.size,
            "dtype": config.model.dtype,
            "head": config.model.head,
        },
        deltas=deltas,
        task=setup.task,
        preprocess=setup.preprocess,
        plan=plan_json,
        base={
            "file": manifest["file"],
            "sha256": manifest.get("sha256"),
            **({"name_map": name_map} if (name_map := config.pretrained.name_map) else {}),
        },
        scores={split: result[split] for split in ("validation", "test") if split in result},
        contents=config.artifact.contents,
        changed=current.settled,
    )
    write_json(workdir / "result.json", result)
    return result


def _counts(setup: Setup) -> dict[str, int]:
    """Scalars of the last phase's model with its deltas, and those that any phase trains."""
    shapes = {x.path: x.shape for phase in setup.phases for x in phase.plan.leaves}
    return {
        "trainable_params": sum(math.prod(shapes[path]) for path in setup.trainable),
        "total_params": sum(math.prod(leaf.shape) for leaf in setup.plan.leaves),
    }


def _targets(setup: Setup, examples: Examples) -> dict[str, np.ndarray]:
    """Targets of all examples of a split."""
    names = setup.task.abstract(1)
    if isinstance(examples, EncodedExamples):
        return {name: examples.arrays[name] for name in names}
    items = [setup.task.host(examples[i]) for i in range(len(examples))]
    return {name: np.stack([item[name] for item in items]) for name in names}


def _origin(setup: Setup, manifest: dict[str, Any]) -> str:
    """One line: what became of the weight file, or what the lack of one means."""
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
    return f"weights: {', '.join(parts)}; see manifest.json"


def _with_deltas(current: Run, index: int) -> dict[str, Any]:
    """The variables with the deltas of a phase at their start values."""
    plan = current.setup.phases[index].plan
    key = jax.random.fold_in(jax.random.key(current.setup.config.seed), 1)
    params = plan.add_deltas(current.variables["params"], key)
    return {**current.variables, "params": params}


def _merged(current: Run, variables: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Variables of the bare model, and the largest logit difference on some images."""
    setup = current.setup
    examples = current.splits.get("validation", current.splits["train"])
    some = np.arange(min(_COMPARED_IMAGES, len(examples)))
    batch = gather(examples, some, setup.encode)
    adapted = Adapted(setup.model, setup.plan.deltas)
    merged, difference = merge(adapted, variables, setup.preprocess.device(batch))
    before = tree.flatten(variables["params"])
    current.settled |= {
        f"params/{path}"
        for path, leaf in tree.flatten(merged["params"]).items()
        if not np.array_equal(leaf, before[path])
    }
    say(f"deltas merged into the base; largest difference of a logit {difference:.2g}")
    return merged, difference


def _changes(current: Run, index: int) -> set[str]:
    """Paths, with their collection, that the weight file no longer speaks for after a phase."""
    plan = current.setup.phases[index].plan
    return (
        {f"params/{p}" for p in plan.trainable}
        | {f"params/{leaf.path}" for leaf in plan.leaves if leaf.delta}
        | {f"batch_stats/{p}" for p in plan.tracked_statistics}
    )

"""The first part of a run: data, weights, the latest checkpoint, and the run folder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax import config as config_lib
from finetune_jax import identity, tree
from finetune_jax.base_variables import load_variables
from finetune_jax.data.batches import TrainBatches, cached
from finetune_jax.data.examples import EncodedExamples, Examples
from finetune_jax.data.held_out import require_splits
from finetune_jax.data.skip import bad_images
from finetune_jax.errors import UserError
from finetune_jax.evaluation.batch_norm import reestimate
from finetune_jax.evaluation.statistics_check import check_statistics, verdict
from finetune_jax.files import write_json
from finetune_jax.hosts import is_primary, require_same
from finetune_jax.mesh import local_rows, put_batch
from finetune_jax.progress import say
from finetune_jax.setup import Setup
from finetune_jax.training.checkpoints import Checkpoints, OtherPlan
from finetune_jax.training.data_remarks import data_remarks
from finetune_jax.training.extending import changed_length, is_length_alone, remarks, set_aside
from finetune_jax.training.first_lines import data_line, length_remarks, run_lines, weights_line
from finetune_jax.training.folder import claim_workdir, differences
from finetune_jax.training.metrics_writer import MetricsWriter, OnMetrics
from finetune_jax.training.run import Run
from finetune_jax.training.shared import SharedCaches
from finetune_jax.training.teacher import with_teacher

_REESTIMATE_BATCHES = 16
_MOST_TARGETS_READ = 1000


def prepare_run(
    setup: Setup,
    workdir: Path,
    caches: SharedCaches,
    on_metrics: OnMetrics | None = None,
    *,
    accept_changed_data: bool = False,
    before: dict[str, Any] | None = None,
) -> tuple[Run, dict[str, Any] | None]:
    """Opens everything that the phases need, in the one order that works.

    Args:
      setup: resolved config.
      workdir: run folder, opened by `folder.open_workdir`.
      caches: caches that the run shares with other arms.
      on_metrics: see `MetricsWriter`.
      accept_changed_data: whether to continue from a checkpoint of other data, tokenizer, weights
        or teacher.
      before: config of the run so far, as JSON, if it had another length; see `open_workdir`.

    Returns:
      The run before its first step, and the meta data of the latest checkpoint; None without a
      checkpoint.

    Raises:
      UserError: bad input, or the latest checkpoint was made from other inputs.
    """
    # 1. Data, decoded once if they fit in memory; the task fitted to them; the teacher.
    require_splits(setup.source, setup.config.data)
    caches.said.get("start", lambda: [*map(say, [data_line(setup)])])
    splits, left_out = _read_splits(setup, caches)
    _require_different_targets(setup, splits["train"])
    setup = with_teacher(with_fitted_task(setup, splits["train"]), caches)
    lengths = setup.phase_steps(len(splits["train"]))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    lines = run_lines(setup, lengths, len(splits["train"]))
    caches.said.get("run", lambda: [*map(say, lines)])
    for line in length_remarks(setup, starts, lengths, len(splits["train"])):
        say(line)

    # 2. Weights, surgery, manifest.
    variables, manifest = load_variables(setup)
    say(weights_line(setup, manifest) + ("; see manifest.json" if manifest["file"] else ""))
    if setup.config.pretrained.check_statistics:
        some = _first_batches(setup, splits["train"])
        fits = check_statistics(setup.model, variables, some, setup.preprocess.device)
        say(verdict(fits))
    anchor = _pretrained_params(setup, variables, manifest)
    modified: set[str] = {*manifest.get("adapter", {}).get("leaves", ())}
    if setup.plan.batch_norm == "reestimate":
        variables = {**variables, "batch_stats": _reestimated(setup, variables, splits["train"])}
        modified |= {f"batch_stats/{p}" for p in tree.flatten(variables["batch_stats"])}

    # 3. The latest checkpoint, if there is one, has the number of the phase to continue with.
    checkpoints = _open_checkpoints(setup, workdir)
    resumed = checkpoints.latest_step
    made_of = identity.made_of(setup, manifest.get("sha256"))
    meta = None
    if resumed is not None:
        meta = _latest_meta(workdir, checkpoints, made_of, accept_changed_data)
        _require_own(workdir, meta, setup)
    require_same(
        {
            "config": setup.config.to_json_best_effort(),
            "checkpoints": resumed,
            "examples": {name: len(examples) for name, examples in splits.items()},
            "bad images": left_out,
            "weight file": manifest.get("sha256"),
            **{f"{part} (identity)": digest for part, digest in identity.digests(made_of).items()},
            "versions": made_of["versions"],
        }
    )
    accepted = _accepted(workdir, meta, made_of, accept_changed_data)
    done = meta["next_step"] if meta else 0
    longer = before and changed_length(setup, workdir, before, len(splits["train"]), done)
    if longer:
        for line in remarks(setup, longer, len(splits["train"]), done):
            say(line)
        changes = [f"length: {sum(longer[0])} -> {sum(longer[1])} steps"]
        accepted.append({"step": done, "changes": changes})

    # 4. All that the config names exists and fits, so the folder now belongs to the config.
    if is_primary():
        if longer:
            set_aside(workdir, sum(longer[0]))
        _write_folder(setup, workdir, manifest, left_out)
    writer = MetricsWriter(
        workdir if is_primary() else None,
        tensorboard=setup.config.log.tensorboard,
        resume_step=resumed,
        on_metrics=on_metrics,
    )
    run = Run(
        setup, workdir, caches, splits, left_out, starts, lengths, manifest, variables, modified,
        anchor, checkpoints, writer, made_of, accepted,
    )  # fmt: skip
    return run, meta


def _latest_meta(
    workdir: Path, checkpoints: Checkpoints, made_of: identity.MadeOf, accept: bool
) -> dict[str, Any]:
    """The meta data of the latest checkpoint.

    Raises:
      UserError: the checkpoint has another plan. If it is made of other data, too, such as one more
        class, the message is about the data.
    """
    try:
        return checkpoints.read_meta()
    except OtherPlan as error:
        what = f"--workdir={workdir}: the checkpoint at step {error.meta['next_step']}"
        identity.require_same_parts(
            error.meta.get("made_of", made_of), made_of, what, accept=accept
        )
        raise


def _require_own(workdir: Path, meta: dict[str, Any], setup: Setup) -> None:
    """Raises UserError for a checkpoint that a run of another config wrote, and that was copied."""
    lines = (
        differences(meta["config"], config_lib.to_json(setup.config)) if "config" in meta else []
    )
    if lines and not is_length_alone(lines):
        step = meta["next_step"]
        raise UserError(
            f"--workdir={workdir}: the checkpoint at step {step} is of a run of another config:\n"
            + "\n".join(f"  {line}" for line in lines)
            + f"\nremove {workdir / 'checkpoints' / str(step)}, or use the folder of its own run; "
            f"to start from its weights, give its path as pretrained.path"
        )


def _accepted(
    workdir: Path, meta: dict[str, Any] | None, made_of: identity.MadeOf, accept: bool
) -> list[dict[str, Any]]:
    """The accepted differences of the run so far; see `Run.accepted`.

    Args:
      workdir: run folder.
      meta: meta data of the latest checkpoint; None without a checkpoint.
      made_of: what the run is made of now.
      accept: whether the user accepts new differences.

    Raises:
      UserError: there are differences from the checkpoint, and they are not accepted.
    """
    if meta is None:
        return []
    accepted, step = list(meta.get("accepted", [])), meta["next_step"]
    if "made_of" not in meta:
        say(
            f"the checkpoint at step {step} is of an earlier version, which did not record its "
            f"data, tokenizer and weights: they are not compared"
        )
        return accepted
    what = f"--workdir={workdir}: the checkpoint at step {step}"
    lines = identity.require_same_parts(meta["made_of"], made_of, what, accept=accept)
    if lines:
        say(f"accepted from step {step} on: {'; '.join(lines)}")
        accepted.append({"step": step, "changes": lines})
    if versions := identity.version_differences(meta["made_of"], made_of):
        say(f"other versions than up to step {step}: {', '.join(versions)}")
    return accepted


def _read_splits(
    setup: Setup, caches: SharedCaches
) -> tuple[dict[str, Examples], dict[str, list[str]]]:
    """Examples by split name, and the names of bad images of the splits that have bad images."""
    data = setup.config.data
    names = [name for name in ("train", "validation", "test") if data[name]]
    # All splits are opened before any is decoded, so that a wrong name is found at once.
    opened = {name: _open_split(setup, name, caches) for name in names}
    bad = {name: list(bad_images(examples)) for name, examples in opened.items()}
    left_out = {name: images for name, images in bad.items() if images}
    decoded = {n: _decode_split(setup, n, x, caches) for n, x in opened.items()}
    caches.said.get("data", lambda: [*map(say, data_remarks(setup, opened, decoded))])
    return decoded, left_out


def _open_split(setup: Setup, name: str, caches: SharedCaches) -> Examples:
    return caches.opened_splits.get(name, lambda: setup.source.read(setup.config.data[name]))


def _decode_split(setup: Setup, name: str, opened: Examples, caches: SharedCaches) -> Examples:
    data = setup.config.data
    return caches.decoded_splits.get(
        name, lambda: cached(opened, setup.encode, data.cache_bytes, data.workers)
    )


def _require_different_targets(setup: Setup, train: Examples) -> None:
    """Refuses training targets from which nothing can be learned, such as those of one class.

    Examples that are not in memory are read until two targets differ, up to a limit.
    """
    task, names = setup.task, setup.task.abstract(1)
    if not names:
        return
    if isinstance(train, EncodedExamples):
        problem = task.degenerate({name: train.arrays[name] for name in names})
    else:
        problem, items = "unknown", list[dict[str, np.ndarray]]()
        while problem and len(items) < len(train):
            if len(items) >= _MOST_TARGETS_READ:
                return
            more = range(len(items), min(len(train), 2 * len(items) + 16))
            items += [task.host(train[i]) for i in more]
            problem = task.degenerate({n: np.stack([item[n] for item in items]) for n in names})
    if problem:
        alone = setup.source.class_names
        if len(alone) == 1 and setup.source.name.startswith("folder:"):
            problem += (
                f". The images lie in one folder, {alone[0]}/: classes are folders, as in "
                f"train/CLASS/IMAGE; where names of files or a table have the labels, a table with "
                f"a column of paths and a column of labels is read by csv:PATH"
            )
        raise UserError(
            f"data.train={setup.config.data.train!r}: nothing can be learned from its "
            f"{len(train)} examples of {setup.source.name!r}: {problem}"
        )


def with_fitted_task(setup: Setup, train: Examples) -> Setup:
    """The setup with its task fitted to the targets of the training split, if the task needs it."""
    task = setup.task
    if not task.needs_fit:
        return setup
    names = task.abstract(1)
    if isinstance(train, EncodedExamples):
        targets = {name: train.arrays[name] for name in names}
    else:
        items = [task.host(train[i]) for i in range(len(train))]
        targets = {name: np.stack([item[name] for item in items]) for name in names}
    return dataclasses.replace(setup, task=task.fit(targets))


def _pretrained_params(
    setup: Setup, variables: dict[str, Any], manifest: dict[str, Any]
) -> dict[str, Any]:
    """Params by leaf path that came from the weight file, for L2-SP; empty when L2-SP is off."""
    settings = setup.config.optimizer
    if not (settings.l2_sp or settings.l2_sp_head):
        return {}
    fresh = {row["leaf"] for row in manifest["rows"] if row["decision"] == "reinitialised"}
    params = tree.flatten(variables["params"])
    return {p: x for p, x in params.items() if f"params/{p}" not in fresh}


def _reestimated(setup: Setup, variables: dict[str, Any], train: Examples) -> dict[str, Any]:
    """BatchNorm statistics of the first training batches."""
    some = _first_batches(setup, train)
    return reestimate(setup.model, variables, some, setup.preprocess.device)


def _first_batches(setup: Setup, train: Examples) -> list[dict[str, Any]]:
    size = setup.config.train.batch_size
    batches = TrainBatches(
        train, setup.encode, size, setup.config.seed, local_rows(setup.mesh, size)
    )
    count = min(_REESTIMATE_BATCHES, math.ceil(len(train) / size))
    return [put_batch(batches.batch(i), setup.mesh) for i in range(count)]


def _open_checkpoints(setup: Setup, workdir: Path) -> Checkpoints:
    settings, task = setup.config.checkpoint, setup.task
    return Checkpoints(
        workdir / "checkpoints",
        [phase.plan for phase in setup.phases],
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
        metric=settings.metric or task.metric,
        better="min" if settings.metric == "loss" else task.better,
    )


def _write_folder(
    setup: Setup, workdir: Path, manifest: dict[str, Any], left_out: dict[str, list[str]]
) -> None:
    """Writes the files that describe the run before its first step."""
    claim_workdir(workdir, config_lib.to_json(setup.config))
    phases = [phase.to_json() for phase in setup.phases]
    write_json(workdir / "plan.json", {**setup.plan.to_json(), "phases": phases})
    write_json(workdir / "manifest.json", manifest)
    if left_out:
        write_json(workdir / "left_out.json", left_out)

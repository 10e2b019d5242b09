"""The last part of a run: the weights to keep, their scores, and the artifact."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.artifact import save_artifact
from finetune_jax.data.batches import gather
from finetune_jax.deltas import Adapted, merge
from finetune_jax.files import seal, write_json
from finetune_jax.hosts import is_primary
from finetune_jax.models import entry_of
from finetune_jax.pretrained.selection import IGNORED
from finetune_jax.progress import say
from finetune_jax.quantization import FORMATS, Format, quantize, quantized_leaves
from finetune_jax.schemes.phases import formats_of
from finetune_jax.setup import Setup
from finetune_jax.training import state as state_lib
from finetune_jax.training.interval import GroupRates, times_of
from finetune_jax.training.run import Run

_COMPARED_IMAGES = 32
_SCORED_SPLITS = ("validation", "test")


def select_variables(run: Run) -> tuple[dict[str, Any], int]:
    """Returns the variables that ``config.artifact.select`` names, and their step.

    These are the variables at the end of the run, or of the best checkpoint of the last phase.
    """
    step = run.checkpoints.best_step
    if run.setup.config.artifact.select != "best" or step is None:
        return run.variables, run.total
    meta = run.checkpoints.read_meta(step)
    phase = run.phase(run.last_phase)
    anchor = phase.anchor(tree.unflatten(run.anchor))
    create = run.caches.create_states.get(
        phase.index, lambda: phase.compile_create(run.variables, anchor)
    )
    _, frozen = phase.create_state(run.variables, anchor, create)
    state, modified = run.checkpoints.restore(
        phase.abstract_state(anchor)[0],
        frozen.leaves(run.modified),
        meta["base_fingerprint"],
        step,
    )
    return state_lib.variables(state, frozen.with_leaves(modified)), step


def quantized(run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    """The variables with the weights in the formats of the artifact.

    These are the formats of ``config.artifact.quantize``, or those that the last phase trained
    for. `Run.modified` gets the paths of the codes of leaves that are in it.

    Args:
      run: run after its last phase.
      variables: variables of both halves.
    """
    formats = _formats(run)
    kept = quantized_leaves(variables["params"])
    params = jax.jit(lambda params: quantize(params, formats))(variables["params"])
    for path, name in quantized_leaves(params).items():
        if path not in kept and f"params/{path}" in run.modified:
            run.modified |= {f"params/{path}/{name}", f"params/{path}/scale"}
    return {**variables, "params": params}


def _formats(run: Run) -> dict[str, Format]:
    """The formats of the artifact's weights by path, without those of ``model.frozen_dtype``."""
    setup = run.setup
    rules = setup.config.artifact.quantize
    phase = setup.phases[run.last_phase]
    found = formats_of(phase.plan, rules, "artifact.quantize") if rules else phase.formats
    return dict(found)


def score_run(run: Run, variables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the scores of some variables by split, and writes the scores on the test split.

    Args:
      run: run after its last phase.
      variables: variables of both halves.
    """
    phase = run.phase(run.last_phase)
    scores: dict[str, dict[str, Any]] = {}
    for split in _SCORED_SPLITS:
        if split not in run.splits:
            continue
        examples = run.splits[split]
        if run.caches.arms > 1:  # every arm reads the activations
            examples = run.cached_split(phase, variables, split)
        began = time.perf_counter()
        scores[split] = run.score(phase, variables, examples)
        if split == "test":
            place: dict[str, float] = {"epoch": run.epoch(run.total)}
            if run.previous:  # a solved phase has no learning rates
                place |= GroupRates(run.previous[0]).at(run.total - 1, run.previous[1])
            times = times_of(began, len(examples))
            run.writer.write(run.total, "test", {**scores[split], **place, **times})
    return scores


def run_figures(
    run: Run, selected_step: int, seconds: float, scores: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Returns the content of ``result.json``.

    Args:
      run: run after its last phase.
      selected_step: step of the variables that the run keeps.
      seconds: wall time of the phases.
      scores: scores of these variables by split.
    """
    setup = run.setup
    return {
        "scheme": setup.scheme,
        "steps": run.total,
        "selected_step": selected_step,
        "seconds": seconds,
        "cost": vars(run.costs[-1]) if run.costs else None,
        "train_flops": sum(run.train_flops),
        **_param_counts(setup),
        "left_out": {name: len(bad) for name, bad in run.left_out.items()},
        "audit": run.audits[-1],
        "phases": [
            {"scheme": phase.plan.scheme, "steps": steps, "audit": audit}
            for phase, steps, audit in zip(setup.phases, run.lengths, run.audits, strict=True)
        ],
        "probes": run.solver_reports,
        "made_of": run.made_of,
        "accepted": run.accepted,
        **_bad_steps(run),
        **scores,
    }


def _bad_steps(run: Run) -> dict[str, Any]:
    """``nonfinite`` with ``policy``, ``skipped`` and ``left_out`` of `Watch`, if there are any."""
    watch = run.watch
    if not (watch.skipped or watch.left_out):
        return {}
    found = {"policy": watch.policy, "skipped": watch.skipped, "left_out": watch.left_out}
    return {"nonfinite": found}


def save_run(run: Run, variables: dict[str, Any], result: dict[str, Any]) -> None:
    """Writes ``artifact/`` and ``result.json``.

    Args:
      run: run after its last phase.
      variables: variables to save.
      result: figures of the run; gets ``largest_logit_difference`` if deltas are merged.
    """
    setup, config = run.setup, run.setup.config
    variables = jax.tree.map(tree.on_host, variables)
    deltas = setup.plan.deltas
    if config.artifact.merge and deltas:
        variables, result["largest_logit_difference"] = _merge(run, variables)
        deltas = ()
    if not is_primary():
        return
    found, formats = quantized_leaves(variables["params"]), _formats(run)
    frozen = FORMATS.get(config.model.frozen_dtype, "")
    save_artifact(
        run.workdir / "artifact",
        variables=jax.tree.map(np.asarray, variables),
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
        plan=setup.plan.to_json(),
        base=_base(run),
        scores={split: result[split] for split in _SCORED_SPLITS if split in result},
        contents=config.artifact.contents,
        changed=run.modified,
        formats={path: str(formats.get(path, frozen)) for path in found},
        made_of=run.made_of,
        accepted=run.accepted,
    )
    write_json(run.workdir / "result.json", seal(result))


def _base(run: Run) -> dict[str, Any]:
    """What the artifact says about the weight file that the run started from."""
    base = {"file": run.manifest["file"], "sha256": run.manifest.get("sha256")}
    # The project whose names the file has; an export takes the same names if it can.
    base |= {"origin": run.manifest["origin"]} if run.manifest.get("origin") else {}
    base |= {"adapter": run.manifest["adapter"]} if "adapter" in run.manifest else {}
    settings = run.setup.config.pretrained
    how = {key: settings[key] for key in ("name_map", "weights", "prefix") if settings[key]}
    # The artifact has the names and not the expression, so that a reader of the artifact does not
    # run an expression of an unknown author.
    ignored = [row["source_name"] for row in run.manifest["rows"] if row["reason"] == IGNORED]
    return {**base, **how, **({"ignored": ignored} if ignored else {})}


def _param_counts(setup: Setup) -> dict[str, int]:
    """Number of scalars that any phase trains, and of the last phase's model with its deltas."""
    shapes = {x.path: x.shape for phase in setup.phases for x in phase.plan.leaves}
    return {
        "trainable_params": sum(math.prod(shapes[path]) for path in setup.trainable),
        "total_params": sum(math.prod(leaf.shape) for leaf in setup.plan.leaves),
    }


def _merge(run: Run, variables: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Variables of the model without deltas, and the largest logit difference on some images."""
    setup = run.setup
    examples = run.splits.get("validation", run.splits["train"])
    some = np.arange(min(_COMPARED_IMAGES, len(examples)))
    batch = gather(examples, some, setup.encode)
    adapted = Adapted(setup.model, setup.plan.deltas)
    if quantized_leaves(variables["params"]):
        say("the base is dequantized, because deltas cannot be merged into weights of few bits")
    merged, difference = merge(adapted, variables, setup.preprocess.device(batch))
    before = tree.flatten(variables["params"])
    run.modified |= {
        f"params/{path}"
        for path, leaf in tree.flatten(merged["params"]).items()
        if path not in before or not np.array_equal(leaf, before[path])
    }
    say(f"deltas merged into the base; largest difference of a logit {difference:.2g}")
    return merged, difference

"""Proposes what to unfreeze: profiles the gradient of each stage on a few training batches.

  python -m finetune_jax.suggest --config=configs/quickstart.py [--output=DIR] [--json]

A new head is first solved on frozen features, because the gradients that a random head sends down
say nothing. Prints the profile and schemes with their predicted cost; with --output, writes
``suggest.json`` and ``profile.png``. Nothing is trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from finetune_jax import cli

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string("output", "", "Folder for suggest.json and profile.png.")
_BATCHES = flags.DEFINE_integer("batches", 5, "Training batches to look at.", lower_bound=2)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the tables.")
flags.mark_flag_as_required("config")

_HEAD_IMAGES = 1024


def profile(config: Any, batches: int = 5) -> dict[str, Any]:
    """Measures and proposes.

    Args:
      config: whose model, weights and training data are meant; its scheme does not matter.
      batches: of ``train.batch_size`` training images.

    Returns:
      ``stages``: rows of `importance.by_stage`; ``proposals``: ``scheme``, ``reason`` and the
      figures of `cost.phase_figures`.
    """
    from finetune_jax.data.batches import TrainBatches
    from finetune_jax.mesh import put_batch
    from finetune_jax.progress import say
    from finetune_jax.setup import load_variables, open_setup
    from finetune_jax.training import importance
    from finetune_jax.training.cost import phase_figures
    from finetune_jax.training.phase import PhaseRun
    from finetune_jax.training.teacher import with_teacher

    def under(scheme: str) -> PhaseRun:
        changed = config.copy_and_resolve_references()
        with changed.ignore_type():
            changed.scheme = scheme
        changed.artifact.merge = False
        if scheme == "full":
            changed.batch_norm = "frozen_all"  # the statistics the weights were trained with
        setup = with_teacher(open_setup(changed))
        return PhaseRun(setup, len(setup.phases) - 1)

    run = under("full")
    setup = run.setup
    examples = setup.source.read(config.data.train)
    variables, manifest = load_variables(setup)
    fresh = {r["leaf"] for r in manifest["rows"] if r["decision"] == "reinitialised"}
    source = TrainBatches(examples, setup.encode, config.train.batch_size, config.seed)
    if any(leaf.startswith("params/head/") for leaf in fresh):
        say("solving the new head on frozen features")
        variables = _with_solved_head(setup, variables, source)
    state, base = run.create_state(variables)
    say(f"measuring gradients of {batches} batches")
    values = importance.measure(
        run, state, base, (put_batch(source.batch(i), setup.mesh) for i in range(batches))
    )
    sizes = {leaf.path: _scalars(leaf.shape) for leaf in run.plan.leaves}
    rows = importance.by_stage(values, sizes, run.plan.stages)
    proposals = []
    for scheme, reason in importance.propose(rows):
        say(f"compiling {scheme}")
        proposals.append({**phase_figures(under(scheme)), "scheme": scheme, "reason": reason})
    return {"stages": rows, "proposals": proposals}


def _with_solved_head(setup: Any, variables: Any, source: Any) -> Any:
    """Ridge regression on features of some training images, its strength on a quarter of them."""
    import jax
    import numpy as np

    from finetune_jax.data.batches import gather
    from finetune_jax.evaluation.step import make_forward
    from finetune_jax.training import head_solver

    count = min(_HEAD_IMAGES, len(source.examples))
    chosen = np.random.default_rng(0).permutation(len(source.examples))[:count]
    forward = jax.jit(make_forward(setup.model, setup.preprocess.device, stop="head"))
    size = min(source.batch_size, count)
    features, labels = [], []
    for start in range(0, count - count % size, size):
        batch = gather(source.examples, chosen[start : start + size], setup.encode)
        features.append(np.asarray(forward(variables, batch)))
        labels.append(batch["label"])
    x, y = np.concatenate(features), np.concatenate(labels)
    cut = max(1, 3 * len(x) // 4)
    classes = setup.task.head_size
    head, _ = head_solver.solve("ridge", (x[:cut], y[:cut]), (x[cut:], y[cut:]), classes)
    return {**variables, "params": {**variables["params"], "head": head}}


def _scalars(shape: Sequence[int]) -> int:
    import math

    return math.prod(shape)


def render(report: dict[str, Any]) -> str:
    """The tables a person reads."""
    from finetune_jax.tables import count, size, table

    top = max(row["rgn"] for row in report["stages"])
    stages = [
        [
            row["stage"], "#" * round(20 * row["rgn"] / top), f"{row['params']:,}",
            f"{row['rgn']:.3g}", f"{row['snr']:.3g}",
        ]
        for row in report["stages"]
    ]  # fmt: skip
    full = next(p for p in report["proposals"] if p["scheme"] == "full")
    schemes = [
        [
            p["scheme"], p["reason"], f"{p['trainable_params']:,}",
            f"{count(p['flops_step'])} ({p['flops_step'] / full['flops_step']:.2f})",
            size(p["temp_bytes"]), size(p["optimizer_bytes"]),
        ]
        for p in report["proposals"]
    ]  # fmt: skip
    return (
        table(["stage", "", "parameters", "|g| / |w|", "signal/noise"], stages, left=2)
        + "\n\n"
        + table(
            ["scheme", "why", "trainable", "step FLOPs (of full)", "temporary", "optimizer"],
            schemes,
            left=2,
        )
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from finetune_jax.files import write_json
    from finetune_jax.reporting.figures import stage_profile

    report = profile(_CONFIG.value, _BATCHES.value)
    print(json.dumps(report, indent=1) if _JSON.value else render(report))
    if _OUTPUT.value:
        folder = Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "suggest.json", report)
        stage_profile(report["stages"], folder / "profile.png")
        if not _JSON.value:
            print(f"\nfigure  {folder / 'profile.png'}")


if __name__ == "__main__":
    cli.run(main)

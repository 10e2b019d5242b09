"""Averages fine-tuned models: interpolation between two (WiSE-FT), or a soup of several.

  python -m finetune_jax.average --members=runs/probe,runs/full --output=runs/between
  python -m finetune_jax.average --members=runs/a,runs/b,runs/c --method=greedy --output=runs/soup

Members are run folders of one model on one dataset, under any schemes. Leaves that all members
share stay bit-identical; BatchNorm statistics that differ are recomputed over training images.
Everything is chosen on validation; the test split scores only what was chosen. Writes
``artifact/``, ``average.json`` and, for an interpolation, ``average.png``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from finetune_jax import cli
from finetune_jax.errors import UserError

_MEMBERS = flags.DEFINE_list("members", None, "Run folders, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write, new or empty.", required=True)
_METHOD = flags.DEFINE_enum(
    "method", "interpolate", ["interpolate", "uniform", "greedy"],
    "interpolate: between two members at each of --alphas; uniform: mean of all; greedy: members "
    "added from the best down while validation accuracy does not fall.",
)  # fmt: skip
_ALPHAS = flags.DEFINE_list(
    "alphas", [f"{i / 10:g}" for i in range(11)], "Shares of the second member, in [0, 1]."
)
_BATCHES = flags.DEFINE_integer(
    "statistics_batches", 16, "Training batches for BatchNorm statistics.", lower_bound=1
)
_BASE = flags.DEFINE_string("base", "", "Base weight file of members that are delta artifacts.")


def combine(
    members: Sequence[Path],
    output: Path,
    method: str = "interpolate",
    alphas: Sequence[float] = tuple(i / 10 for i in range(11)),
    statistics_batches: int = 16,
    base: str = "",
) -> dict[str, Any]:
    """Averages, chooses on validation, writes the artifact; returns the content of average.json.

    Args:
      members: folders of finished runs.
      output: folder to write; must not hold anything.
      method: ``interpolate``, ``uniform`` or ``greedy``.
      alphas: for ``interpolate``.
      statistics_batches: of ``train.batch_size`` training images.
      base: the weight file that members with ``artifact.contents=delta`` started from.

    Raises:
      UserError: members that do not go together, or arguments out of range.
    """
    import jax
    import numpy as np

    from finetune_jax import config as config_lib
    from finetune_jax.artifact import load_artifact, save_artifact
    from finetune_jax.artifact.average import average, comparable, differing, greedy, uniform
    from finetune_jax.data.augment import make_input_pipeline
    from finetune_jax.data.batches import TrainBatches, cached
    from finetune_jax.data.sources import open_configured
    from finetune_jax.evaluation.batch_norm import reestimate
    from finetune_jax.evaluation.scores import evaluate, headline
    from finetune_jax.evaluation.step import make_eval_step
    from finetune_jax.files import read_json, write_json
    from finetune_jax.progress import say

    if len(members) < 2 or (method == "interpolate" and len(members) != 2):
        wanted = "two" if method == "interpolate" else "at least two"
        raise UserError(f"--members: {method} needs {wanted}, found {len(members)}")
    if not all(0 <= a <= 1 for a in alphas):
        raise UserError(f"--alphas: expected numbers in [0, 1], found {list(alphas)}")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output={output} is not empty")
    names = [str(m) for m in members]
    configs = [read_json(m / "config.json") for m in members]
    for config, name in zip(configs[1:], names[1:], strict=True):
        lines = config_lib.difference(configs[0]["data"], config["data"])
        apart = ("augment", "cache_bytes", "workers")
        lines = [line for line in lines if line.split(":")[0] not in apart]
        if lines:
            raise UserError(f"{name} was trained on other data than {names[0]}: {lines[0]}")
    artifacts = comparable([load_artifact(m, base) for m in members], names)
    first, config = artifacts[0], config_lib.from_json(configs[0])
    if not config.data.validation:
        raise UserError("the members have no validation split to choose on")
    source = open_configured(config.data)
    splits = {
        name: cached(source.read(config.data[name]), first.encode, config.data.cache_bytes)
        for name in ("train", "validation", "test")
        if config.data[name]
    }
    weights = [a.variables for a in artifacts]
    statistics = {p.split("/")[1] for p in differing(weights) if p.startswith("batch_stats/")}
    images = []
    if statistics:
        batches = TrainBatches(splits["train"], first.encode, config.train.batch_size, config.seed)
        images = [batches.batch(i) for i in range(statistics_batches)]
    step = jax.jit(make_eval_step(first.model, first.task, make_input_pipeline(first.preprocess)))

    def score(variables: Any, split: str) -> dict[str, Any]:
        return evaluate(
            first.task,
            step,
            variables,
            splits[split],
            first.encode,
            batch_size=config.eval.batch_size,
            place=lambda batch: batch,
        )

    def ready(variables: Any) -> Any:
        if not statistics:
            return variables
        new = reestimate(first.model, variables, images, first.preprocess.device, statistics)
        return {**variables, "batch_stats": jax.tree.map(np.asarray, new)}

    metric, sign = first.task.metric, 1 if first.task.better == "max" else -1
    rows = []
    if method == "interpolate":
        tried = {}
        for alpha in alphas:
            mixed = average(weights, [1 - alpha, alpha])
            # An end point is a member as it was, statistics included.
            tried[alpha] = mixed if alpha in (0, 1) else ready(mixed)
            rows.append({"alpha": alpha, **score(tried[alpha], "validation")})
            say(f"alpha {alpha:g}  validation {headline(metric, rows[-1])}")
        chosen = max(rows, key=lambda r: sign * r[metric])["alpha"]
        final, choice = tried[chosen], {"alpha": chosen}
    else:
        for name, variables in zip(names, weights, strict=True):
            rows.append({"member": name, **score(variables, "validation")})
            say(f"{name}  validation {headline(metric, rows[-1])}")
        if method == "uniform":
            final, kept = ready(average(weights, uniform(len(weights)))), range(len(weights))
        else:

            def tested(variables: Any) -> tuple[float, Any]:
                variables = ready(variables)
                return sign * score(variables, "validation")[metric], variables

            kept, final, _ = greedy(weights, [sign * r[metric] for r in rows], tested)
        choice = {"members": [names[i] for i in kept]}
    scores = {split: score(final, split) for split in ("validation", "test") if split in splits}
    report = {
        "method": method,
        "members": names,
        "metric": metric,
        "chosen": choice,
        "rows": rows,
        "statistics": sorted(statistics),
        "scores": scores,
    }
    output.mkdir(parents=True, exist_ok=True)
    save_artifact(
        output / "artifact",
        variables=final,
        model=first.card["model"],
        deltas=first.model.deltas,
        task=first.task,
        preprocess=first.preprocess,
        plan={"scheme": f"{method} of {', '.join(a.card['plan']['scheme'] for a in artifacts)}"},
        base=first.card["base"],
        scores=scores,
        contents="all",
        changed=set(),
    )
    write_json(output / "config.json", configs[0])
    write_json(output / "average.json", report)
    if method == "interpolate":
        from finetune_jax.reporting.figures import interpolation

        interpolation(rows, names, metric, output / "average.png")
    return report


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        alphas = [float(a) for a in _ALPHAS.value]
    except ValueError:
        raise UserError(f"--alphas: expected numbers, found {_ALPHAS.value}") from None
    members = [Path(m) for m in _MEMBERS.value]
    from finetune_jax.evaluation.scores import headline

    report = combine(
        members, Path(_OUTPUT.value), _METHOD.value, alphas, _BATCHES.value, _BASE.value
    )
    print(f"chosen on validation: {report['chosen']}")
    for split, s in report["scores"].items():
        print(f"{split} {headline(report['metric'], s)}")
    print(f"artifact  {_OUTPUT.value}/artifact")


if __name__ == "__main__":
    cli.run(main)

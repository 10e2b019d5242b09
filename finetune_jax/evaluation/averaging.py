"""Averages of fine-tuned models, chosen on the validation split: WiSE-FT and model soups.

`finetune_jax.artifact.averaging` has the averages and the papers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import config as config_lib
from finetune_jax import tasks
from finetune_jax.artifact import Artifact, save_artifact
from finetune_jax.artifact.averaging import average, comparable, differing, greedy, uniform
from finetune_jax.artifact.providers import config_doors
from finetune_jax.data.augment import make_input_pipeline
from finetune_jax.data.batches import TrainBatches, cached
from finetune_jax.data.class_map import open_configured
from finetune_jax.data.examples import Examples
from finetune_jax.doors import require_allowed
from finetune_jax.errors import UserError
from finetune_jax.evaluation.batch_norm import Update, make_update, reestimate
from finetune_jax.evaluation.evaluator import source_may_have_moved
from finetune_jax.evaluation.scores import evaluate, headline
from finetune_jax.evaluation.step import make_eval_step
from finetune_jax.evaluation.trust import require_trust
from finetune_jax.files import read_json, write_json
from finetune_jax.locks import NAME as LOCK
from finetune_jax.metrics import names
from finetune_jax.progress import clock, say
from finetune_jax.run_folders import require_run

ALPHAS = tuple(i / 10 for i in range(11))
"""Weights of the second member that an interpolation tries."""

_MAY_DIFFER = ("augment", "cache_bytes", "workers")
"""Keys of ``config.data`` that do not change which examples a member was trained on."""

Variables = dict[str, Any]
Rows = list[dict[str, Any]]


def combine(
    members: Sequence[Path],
    output: Path,
    method: str = "interpolate",
    alphas: Sequence[float] = ALPHAS,
    statistics_batches: int = 16,
    base: str = "",
    allow_imports: Iterable[str] = (),
    trust: bool = False,
    data_source: str = "",
) -> dict[str, Any]:
    """Averages members, chooses on validation, and writes the artifact of the chosen average.

    Args:
      members: folders of finished runs.
      output: folder to write; must not hold anything.
      method: ``interpolate``, ``uniform`` or ``greedy``.
      alphas: weights of the second member, in [0, 1], for ``interpolate``.
      statistics_batches: number of batches, of ``train.batch_size`` training images each, for
        BatchNorm statistics.
      base: weight file of the base of members with ``artifact.contents=delta``.
      allow_imports, trust, data_source: see `open_run`.

    Returns:
      The content of ``average.json``: ``method``, ``members``, ``metric``, ``chosen``, ``rows``
      (validation scores of all that was tried, of an interpolation with ``recomputed``: whether
      BatchNorm statistics were recomputed), ``statistics`` (stages whose BatchNorm statistics were
      recomputed), and ``scores`` of the chosen average by split.

    Raises:
      UserError: members that cannot be averaged with each other, or an argument out of range.
    """
    _check(members, output, method, alphas)
    opened = _open(members, statistics_batches, base, allow_imports, trust, data_source)
    if method == "interpolate":
        rows, chosen, final = _interpolate(opened, alphas)
    else:
        rows, chosen, final = _soup(opened, method)
    scores: dict[str, Any] = {
        s: opened.score(final, s) for s in ("validation", "test") if s in opened.splits
    }
    report = {
        "method": method,
        "members": opened.names,
        "metric": opened.first.task.metric,
        "chosen": chosen,
        "rows": rows,
        "statistics": sorted(opened.statistics),
        "scores": scores,
    }
    output.mkdir(parents=True, exist_ok=True)
    plans = [artifact.card["plan"] for artifact in opened.artifacts]
    plan: dict[str, Any] = {"scheme": f"{method} of {', '.join(plan['scheme'] for plan in plans)}"}
    providers = [provider for plan in plans for provider in plan.get("providers", ())]
    if providers:
        plan["providers"] = providers
    save_artifact(
        output / "artifact",
        variables=final,
        model=opened.first.card["model"],
        deltas=opened.first.model.deltas,
        task=opened.first.task,
        preprocess=opened.first.preprocess,
        plan=plan,
        base=opened.first.card["base"],
        scores=scores,
        contents="all",
        changed=set(),
        made_of=_common([artifact.card.get("made_of", {}) for artifact in opened.artifacts]),
    )
    write_json(output / "config.json", read_json(members[0] / "config.json"))
    write_json(output / "average.json", report)
    return report


def _common(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The keys that have one value in all dicts, with this value."""
    return {k: v for k, v in values[0].items() if all(k in x and x[k] == v for x in values)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Members:
    """Members opened for averaging, and how their averages are scored.

    Attributes:
      names: folders of the members, for messages.
      artifacts: the members with weights of one structure, see `comparable`.
      splits: encoded examples by split.
      statistics: stages with BatchNorm statistics that differ between the members.
      images: training batches for these statistics.
      eval_step: compiled evaluation step.
      batch_size: batch size of the evaluation step.
    """

    names: list[str]
    artifacts: list[Artifact]
    splits: dict[str, Examples]
    statistics: set[str]
    images: list[dict[str, np.ndarray]]
    eval_step: Callable[..., Any]
    batch_size: int

    @property
    def first(self) -> Artifact:
        """The first member, with whose task and preprocessing all averages are scored."""
        return self.artifacts[0]

    @functools.cached_property
    def _update(self) -> Update:
        """One program for the statistics of all averages."""
        model, prepare = self.first.model, self.first.preprocess.device
        stages = self.first.variables["batch_stats"]  # in forward order
        return make_update(model, prepare, [s for s in stages if s in self.statistics])

    @property
    def weights(self) -> list[Variables]:
        """Variables of each member."""
        return [artifact.variables for artifact in self.artifacts]

    def score(self, variables: Variables, split: str) -> dict[str, Any]:
        """Scores of variables on a split."""
        return evaluate(
            self.first.task,
            self.eval_step,
            variables,
            self.splits[split],
            self.first.encode,
            batch_size=self.batch_size,
            place=lambda batch: batch,
        )

    def with_statistics(self, variables: Variables) -> Variables:
        """The variables, with recomputed BatchNorm statistics where those of the members differ."""
        if not self.statistics:
            return variables
        new = reestimate(
            self.first.model,
            variables,
            self.images,
            self.first.preprocess.device,
            self.statistics,
            self._update,
        )
        return {**variables, "batch_stats": jax.tree.map(np.asarray, new)}

    def quality(self, scores: dict[str, Any]) -> float:
        """The headline metric, with a sign that makes higher better.

        Raises:
          UserError: the metric is undefined, so that nothing can be chosen by it.
        """
        task = self.first.task
        value = float(scores[task.metric])
        if not math.isfinite(value):
            raise UserError(
                f"the {names.named(task.metric).name} is undefined on the validation split, so no "
                f"average can be chosen by it; use a validation split with other examples"
            )
        return (1 if task.better == "max" else -1) * value


def _check(members: Sequence[Path], output: Path, method: str, alphas: Sequence[float]) -> None:
    if len(members) < 2 or (method == "interpolate" and len(members) != 2):
        wanted = "two" if method == "interpolate" else "at least two"
        hint = "; --method=uniform or greedy averages more" if len(members) > 2 else ""
        raise UserError(f"--members: {method} needs {wanted}, found {len(members)}{hint}")
    if not all(0 <= a <= 1 for a in alphas):
        raise UserError(f"--alphas: expected numbers in [0, 1], found {list(alphas)}")
    if output.exists() and any(not p.name.startswith(LOCK) for p in output.iterdir()):
        raise UserError(f"--output={output} is not empty")


def _open(
    members: Sequence[Path],
    statistics_batches: int,
    base: str,
    allow_imports: Iterable[str],
    trust: bool,
    data_source: str,
) -> _Members:
    names = [str(member) for member in members]
    for member in members:
        require_run(member)
    configs = [read_json(member / "config.json") for member in members]
    for values, name in zip(configs, names, strict=True):
        doors = config_doors(config_lib.from_json(values))
        require_allowed(doors, allow_imports, f"{name}/config.json")
        replaced = ("data.source",) if data_source else ()
        require_trust(values, Path(name) / "config.json", trust, replaced)
    for other, name in zip(configs[1:], names[1:], strict=True):
        _require_same_data(configs[0], other, names[0], name)
    loaded = [Artifact.load(member, base, allow_imports) for member in members]
    artifacts = comparable(loaded, names)
    first, config = artifacts[0], config_lib.from_json(configs[0])
    if not config.data.validation:
        raise UserError("the members have no validation split to choose on")
    config.data.source = data_source or config.data.source
    with source_may_have_moved(config.data.source, data_source):
        source = open_configured(config.data, tasks.kind_of(config.task.name).labels)
    splits = {
        name: cached(source.read(config.data[name]), first.encode, config.data.cache_bytes)
        for name in ("validation", "test")
        if config.data[name]
    }
    changed = differing([artifact.variables for artifact in artifacts])
    stages = {path.split("/")[1] for path in changed if path.startswith("batch_stats/")}
    images = []
    if stages:
        train = source.read(config.data.train)
        batches = TrainBatches(train, first.encode, config.train.batch_size, config.seed)
        say(
            f"BatchNorm statistics of {', '.join(sorted(stages))} differ between the members: "
            f"those of each average are recomputed over {statistics_batches} batches of "
            f"{config.train.batch_size} training images"
        )
        images = [batches.batch(i) for i in range(statistics_batches)]
    step = make_eval_step(first.model, first.task, make_input_pipeline(first.preprocess))
    return _Members(names, artifacts, splits, stages, images, jax.jit(step), config.eval.batch_size)


def _require_same_data(
    first: dict[str, Any], other: dict[str, Any], first_name: str, other_name: str
) -> None:
    lines = config_lib.difference(first["data"], other["data"])
    lines = [line for line in lines if line.split(":")[0] not in _MAY_DIFFER]
    if lines:
        raise UserError(f"{other_name} was trained on other data than {first_name}: {lines[0]}")


class _TimeLeft:
    """The time to the end of some points, of which the first ones compile.

    Args:
      points: number of points.
    """

    def __init__(self, points: int) -> None:
        self._left, self._now = points, time.monotonic()
        self._seconds: list[float] = []

    def after_one(self) -> str:
        """The text ``0:01:20 left`` after one more point."""
        self._left -= 1
        before, self._now = self._now, time.monotonic()
        self._seconds.append(self._now - before)
        return f"{clock(self._left * statistics.median_low(self._seconds))} left"


def _interpolate(
    members: _Members, alphas: Sequence[float]
) -> tuple[Rows, dict[str, Any], Variables]:
    """Returns (validation scores of each alpha, the best alpha, its variables)."""
    metric = members.first.task.metric
    rows: Rows = []
    tried: dict[float, Variables] = {}
    left = _TimeLeft(len(alphas))
    for alpha in alphas:
        mixed = average(members.weights, [1 - alpha, alpha])
        # An end point is an unchanged member: the member keeps its statistics.
        recomputed = bool(members.statistics) and alpha not in (0, 1)
        tried[alpha] = members.with_statistics(mixed) if alpha not in (0, 1) else mixed
        scores = members.score(tried[alpha], "validation")
        rows.append({"alpha": alpha, "recomputed": recomputed, **scores})
        how = "  statistics recomputed" if recomputed else ""
        say(f"alpha {alpha:g}  validation {headline(metric, scores)}{how}  {left.after_one()}")
    best = max(rows, key=members.quality)["alpha"]
    return rows, {"alpha": best}, tried[best]


def _soup(members: _Members, method: str) -> tuple[Rows, dict[str, Any], Variables]:
    """Returns (validation scores of each member, the members kept, their average)."""
    metric, weights = members.first.task.metric, members.weights
    rows: Rows = []
    # The greedy soup tries each member but the best one once more.
    left = _TimeLeft(len(weights) * (1 if method == "uniform" else 2) - (method == "greedy"))
    for name, variables in zip(members.names, weights, strict=True):
        rows.append({"member": name, **members.score(variables, "validation")})
        say(f"{name}  validation {headline(metric, rows[-1])}  {left.after_one()}")
    if method == "uniform":
        final = members.with_statistics(average(weights, uniform(len(weights))))
        return rows, {"members": members.names}, final

    def score(variables: Variables) -> tuple[float, Variables]:
        variables = members.with_statistics(variables)
        return members.quality(members.score(variables, "validation")), variables

    kept, final, _ = greedy(weights, [members.quality(row) for row in rows], score)
    return rows, {"members": [members.names[i] for i in kept]}, final

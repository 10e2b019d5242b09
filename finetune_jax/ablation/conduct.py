"""An ablation from its study to its outcome: tune on validation, score the chosen arms once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from finetune_jax.ablation import worker
from finetune_jax.ablation.arm import Arm, make_arm, overridden
from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.launch import Launcher
from finetune_jax.ablation.ledger import Ledger
from finetune_jax.ablation.outcome import Cost, Outcome, Row
from finetune_jax.ablation.search import Trial, best, budget, edges, parse_search
from finetune_jax.ablation.study import Line, Study, lines_of
from finetune_jax.errors import UserError
from finetune_jax.files import write_json
from finetune_jax.reporting.live import Live


class Conductor:
    """Runs a study in a folder, going on with what is there.

    Args:
      study: what to compare.
      base: config that rows and points override.
      workdir: gets ``results.jsonl``, ``runs/KEY/`` and ``units/``.
      launcher: runs units.
      unit_arms: arms of a unit at most, so that several machines share those of one structure; 0
        puts all of a structure into one.

    Raises:
      UserError: a row, point or search that cannot be, before anything runs.
    """

    def __init__(
        self,
        study: Study,
        base: ml_collections.ConfigDict,
        workdir: Path,
        launcher: Launcher,
        unit_arms: int = 0,
    ) -> None:
        self._study, self._base, self._launcher = study, base, launcher
        self._workdir, self._unit_arms = workdir, unit_arms
        self._search = parse_search(study.search)
        self._lines = lines_of(study, base)
        self._metric, self._better = self._check()
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir={workdir}: cannot write there: {error.strerror}") from None
        self._ledger = Ledger(workdir / "results.jsonl")

    def run(self, about: dict[str, Any]) -> Outcome:
        """Tunes, trains and scores what is missing; returns what was found.

        Args:
          about: for people, see `Outcome`; gets ``seconds``, of all runs of the folder together.
        """
        began = time.monotonic()
        try:
            rows = self._rows()
        finally:
            seconds = self._spend(time.monotonic() - began)
        return Outcome(
            rows,
            self._metric,
            self._better,
            self._study.reference,
            tuple(self._study.seeds),
            len(self._study.tune_seeds),
            {**about, "seconds": seconds},
        )

    def _spend(self, seconds: float) -> float:
        """Notes the time of this process; returns that of all that worked in the folder."""
        path = self._workdir / "seconds.txt"
        known = path.read_text().split() if path.exists() else []
        path.write_text("\n".join([*known, f"{seconds:.1f}"]) + "\n")
        return sum(map(float, known)) + seconds

    def _rows(self) -> tuple[Row, ...]:
        with Live([line.name for line in self._lines]) as live:
            tried = self._tune(live)
            chosen = {line.name: best(tried[line.name]) for line in self._lines}
            arms = {
                line.name: [self._arm(line, trial.point, seed) for seed in self._study.seeds]
                for line in self._lines
                if (trial := chosen[line.name]) is not None
            }
            self._train([arm for row in arms.values() for arm in row], live)
            self._score(arms, live)
        return tuple(
            self._row(line, tried[line.name], chosen[line.name], arms.get(line.name, []))
            for line in self._lines
        )

    def _check(self) -> tuple[str, str]:
        """The tasks' metric and its direction; resolves one arm of each row."""
        from finetune_jax.setup import open_setup
        from finetune_jax.training.arms import structure

        found: dict[tuple[str, str], str] = {}
        for line in self._lines:
            if not self._config(line, line.points[0]).data.validation:
                raise UserError(
                    f"row {line.name!r}: rows are tuned on validation, and data.validation is empty"
                )
            known: set[str] = set()
            for point in line.points:
                # Those that differ in a learning rate, say, have the same model, data and plan.
                text = structure(self._arm(line, point, 0).config)
                if text not in known:
                    known.add(text)
                    task = open_setup(self._config(line, point)).task
                    found.setdefault((task.metric, task.better), line.name)
        if len(found) > 1:
            said = ", ".join(f"{name!r} {metric}" for (metric, _), name in found.items())
            raise UserError(f"rows: expected tasks with one metric, found {said}")
        return next(iter(found))

    def _config(self, line: Line, point: Overrides) -> ml_collections.ConfigDict:
        return overridden(self._base, {**line.overrides, **point})

    def _arm(self, line: Line, point: Overrides, seed: int, share: float = 1.0) -> Arm:
        return make_arm(self._base, line.name, line.overrides, point, seed, share)

    def _tune(self, live: Live) -> dict[str, list[Trial]]:
        """Everything the search asks for, by name of row."""
        tried: dict[str, list[Trial]] = {line.name: [] for line in self._lines}
        while True:
            wishes = {}
            for line in self._lines:
                same = {x.name: tried[x.name] for x in self._lines if x.table == line.table}
                wishes[line.name] = self._search.ask(line, same)
            if not any(wishes.values()):
                return tried
            asked = {
                line.name: [
                    [self._arm(line, point, s, share) for s in self._study.tune_seeds]
                    for point, share in wishes[line.name]
                ]
                for line in self._lines
            }
            self._train([a for row in asked.values() for arms in row for a in arms], live)
            for name, row in asked.items():
                for (point, share), arms in zip(wishes[name], row, strict=True):
                    tried[name].append(Trial(point, share, self._value(arms)))

    def _value(self, arms: Sequence[Arm]) -> float | None:
        """Mean validation score, more is better; None if an arm failed."""
        values = [self._ledger.get(arm.key, "trained").get("validation") for arm in arms]
        if any(value is None or value.get(self._metric) is None for value in values):
            return None
        mean = math.fsum(value[self._metric] for value in values) / len(values)
        if not math.isfinite(mean):
            return None
        return mean if self._better == "max" else -mean

    def _train(self, arms: Sequence[Arm], live: Live) -> None:
        """Trains the arms that have not been, structure by structure."""
        from finetune_jax.training.arms import structure

        missing: dict[str, Arm] = {}
        for arm in arms:
            if self._ledger.get(arm.key, "trained") is None:
                missing.setdefault(arm.key, arm)
        groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        for arm in missing.values():
            groups.setdefault(structure(arm.config), []).append((self._folder(arm), arm.config))
        size = self._unit_arms or len(missing)
        units = [
            worker.train_unit(group[i : i + size])
            for group in groups.values()
            for i in range(0, len(group), size)
        ]

        def collect() -> None:
            for key, arm in list(missing.items()):
                result = worker.trained(self._folder(arm))
                if result is not None:
                    self._ledger.append(_trained(arm, result))
                    live.ended(arm.row, self._ledger.get(key, "trained"), self._metric)
                    del missing[key]

        self._launch(units, "train", len(missing), collect, live)

    def _score(self, arms: dict[str, list[Arm]], live: Live) -> None:
        """Scores the chosen arms that have trained and have no scores."""
        asked = {line.name: self._asked(line) for line in self._lines}
        missing = {
            arm.key: arm
            for name, row in arms.items()
            for arm in row
            if asked[name]["test"]
            and "error" not in self._ledger.get(arm.key, "trained")
            and self._ledger.get(arm.key, _scored(asked[name])) is None
        }
        units = []
        for name in arms:
            folders = [self._folder(a) for a in missing.values() if a.row == name]
            if folders:
                units.append(worker.score_unit(folders, asked[name]))

        def collect() -> None:
            for key, arm in list(missing.items()):
                scores = worker.scored(self._folder(arm), asked[arm.row])
                if scores is not None:
                    named = _named(arm, _scored(asked[arm.row]))
                    self._ledger.append({**named, "asked": asked[arm.row], **scores})
                    live.ended(arm.row)
                    del missing[key]

        self._launch(units, "score", len(missing), collect, live)

    def _asked(self, line: Line) -> worker.Asked:
        """What the chosen arms of a row are scored on."""
        study = self._study
        return {
            "test": self._config(line, {}).data.test,
            "corruptions": study.corruptions,
            "severity": study.severity if study.corruptions else "",
            "shifts": study.shifts,
            "drift": study.drift,
        }

    def _launch(
        self,
        units: Sequence[dict[str, Any]],
        what: str,
        count: int,
        collect: Callable[[], None],
        live: Live,
    ) -> None:
        """Hands units to the launcher; of arms that had ended before a crash, only collects."""
        live.expect(what, count)
        collect()
        folder = self._workdir / "units"
        folder.mkdir(exist_ok=True)
        paths = []
        for number, unit in enumerate(units):
            path = folder / f"{what}_{number:04d}.json"
            write_json(path, unit)
            if not worker.finished(path):
                paths.append(path)
        if paths:
            self._launcher.run(paths, collect)
            collect()
        for path in folder.glob(f"{what}_*.json"):
            path.unlink()

    def _folder(self, arm: Arm) -> Path:
        return (self._workdir / "runs" / arm.key).absolute()

    def _row(
        self, line: Line, trials: Sequence[Trial], chosen: Trial | None, arms: Sequence[Arm]
    ) -> Row:
        records = {a.seed: self._ledger.get(a.key, "trained") for a in arms}
        asked = self._asked(line)
        scores = {a.seed: s for a in arms if (s := self._ledger.get(a.key, _scored(asked)))}
        others: dict[str, dict[int, dict[str, Any]]] = {}
        for seed, record in scores.items():
            for name, value in record["others"].items():
                others.setdefault(name, {})[seed] = value
        costs = [r["cost"] for r in records.values() if "error" not in r]
        # Halving's short rungs are of the same points: the ends are those of what was asked.
        points = [t.point for t in trials]
        return Row(
            line=line,
            point=chosen.point if chosen else None,
            edges=tuple(edges(chosen.point, points)) if chosen else (),
            trials=tuple(trials),
            budget=budget(trials) * len(self._study.tune_seeds),
            validation={s: r["validation"] for s, r in records.items() if "error" not in r},
            test={s: r["test"] for s, r in scores.items()},
            others=others,
            predictions={
                a.seed: worker.predictions_of(self._folder(a), asked)
                for a in arms
                if a.seed in scores
            },
            cost=Cost(**costs[0]) if costs else None,
            errors={s: r["error"] for s, r in records.items() if "error" in r},
        )


def _scored(asked: worker.Asked) -> str:
    """What the ledger calls an arm's answers to a question."""
    return f"scored {worker.name_of(asked)}"


def _named(arm: Arm, what: str) -> dict[str, Any]:
    return {
        "key": arm.key,
        "what": what,
        "row": arm.row,
        "point": arm.point,
        "seed": arm.seed,
        "share": arm.share,
    }


def _trained(arm: Arm, result: dict[str, Any]) -> dict[str, Any]:
    """The record of an arm that has trained, or failed."""
    if "error" in result:
        return {**_named(arm, "trained"), "error": result["error"]}
    step = result["cost"] or {}
    cost = Cost(
        trainable=result["trainable_params"],
        total=result["total_params"],
        step_flops=step.get("flops", 0.0),
        train_flops=result["train_flops"],
        peak_bytes=step.get("argument_bytes", 0) + step.get("temp_bytes", 0),
        optimizer_bytes=step.get("optimizer_bytes", 0),
        checkpoint_bytes=step.get("checkpoint_bytes", 0),
        seconds=result["seconds"],
    )
    return {
        **_named(arm, "trained"),
        "steps": result["steps"],
        "validation": result["validation"],
        "cost": vars(cost),
    }

"""Runs an ablation: tunes each row on validation, then scores the chosen arms once on test."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from finetune_jax.ablation import worker
from finetune_jax.ablation.arm import Arm, apply_overrides, make_arm
from finetune_jax.ablation.arm_inputs import ArmInputs
from finetune_jax.ablation.axes import Overrides
from finetune_jax.ablation.launch.base import Launcher
from finetune_jax.ablation.ledger import Ledger
from finetune_jax.ablation.outcome import Outcome, RunCost, TableRow
from finetune_jax.ablation.recorded import RecordedArms
from finetune_jax.ablation.records import TRAINED, scored_kind, scored_record, trained_record
from finetune_jax.ablation.search import parse_search
from finetune_jax.ablation.search.base import Proposal, Trial, best_trial, budget, edges
from finetune_jax.ablation.seconds import add_seconds
from finetune_jax.ablation.study import RowSpec, Study, row_specs
from finetune_jax.base_variables import check_weights
from finetune_jax.disk import make_folder
from finetune_jax.errors import UserError, about
from finetune_jax.files import write_json
from finetune_jax.interruption import Interrupted
from finetune_jax.reporting.live import Live
from finetune_jax.setup import open_setup
from finetune_jax.training.arms import structure


class Conductor:
    """Runs a study in a folder, and continues with what an earlier call left there.

    Args:
      study: what to compare.
      base: config that rows and points override.
      workdir: folder for ``results.jsonl``, ``runs/KEY/`` and ``units/``.
      launcher: runs the units.
      unit_arms: largest number of arms in a unit, so that several machines can share the arms of
        one structure; 0 puts all arms of one structure into one unit.
      accept_changed_data: whether to keep the records of arms whose data, tokenizer, weights or
        teacher have changed since they were recorded. The acceptance is recorded.

    Raises:
      UserError: an invalid row, point or search, a folder that cannot be written, or a damaged
        ledger. All of these are found before anything runs.
    """

    def __init__(
        self,
        study: Study,
        base: ml_collections.ConfigDict,
        workdir: Path,
        launcher: Launcher,
        unit_arms: int = 0,
        *,
        accept_changed_data: bool = False,
    ) -> None:
        self._accept, self._inputs = accept_changed_data, ArmInputs()
        self._study, self._base, self._launcher = study, base, launcher
        self._workdir, self._unit_arms = workdir, unit_arms
        self._search = parse_search(study.search)
        self._rows = row_specs(study, base)
        # By row, the split that its chosen arms are scored on; empty where the data has none.
        self._tests: dict[str, str] = {}
        self._metric, self._better = self._check()
        make_folder(workdir, f"--workdir={workdir}")
        if (workdir / "config.json").exists():
            raise UserError(f"--workdir={workdir} is the folder of a run; use another")
        self._ledger = Ledger(workdir / "results.jsonl")
        self._recorded = RecordedArms(self._ledger, workdir, accept=accept_changed_data)
        self._recorded.say_versions()

    def run(self, provenance: dict[str, Any]) -> Outcome:
        """Tunes, trains and scores what is missing; returns the outcome.

        Args:
          provenance: see `Outcome`; ``seconds``, summed over all calls for this folder, and
            ``accepted`` are added.

        Raises:
          UserError: arms were recorded that were made of other data, tokenizer, weights or teacher.
        """
        start = time.monotonic()
        try:
            rows = self._run_rows()
        finally:
            seconds = add_seconds(self._workdir / "seconds.txt", time.monotonic() - start)
        return Outcome(
            rows,
            self._metric,
            self._better,
            self._study.reference,
            tuple(self._study.seeds),
            len(self._study.tune_seeds),
            {**provenance, "seconds": seconds, "accepted": self._recorded.changes()},
        )

    def _run_rows(self) -> tuple[TableRow, ...]:
        with Live([row.name for row in self._rows]) as live:
            trials = self._tune(live)
            chosen = {row.name: best_trial(trials[row.name]) for row in self._rows}
            arms = {
                row.name: [self._arm(row, trial.point, seed) for seed in self._study.seeds]
                for row in self._rows
                if (trial := chosen[row.name]) is not None
            }
            self._train([arm for of_row in arms.values() for arm in of_row], live)
            self._score(arms, live)
        return tuple(
            self._table_row(row, trials[row.name], chosen[row.name], arms.get(row.name, []))
            for row in self._rows
        )

    def _check(self) -> tuple[str, str]:
        """The metric of the tasks and its direction.

        One setup per structure is opened as a check, and its weight file compared with the model,
        so that a scheme that freezes a new head, for example, is refused before any training.
        """
        metrics: dict[tuple[str, str], str] = {}
        for row in self._rows:
            if not self._config(row, row.points[0]).data.validation:
                raise UserError(
                    f"row {row.name!r}: rows are tuned on validation, and data.validation is empty"
                )
            checked: set[str] = set()
            for point in row.points:
                # Points of one structure, which differ only in a learning rate for example, have
                # the same model, data and plan: one check is enough.
                arm = make_arm(self._base, row.name, row.overrides, point, 0)
                key = structure(arm.config)
                if key not in checked:
                    checked.add(key)
                    setup = open_setup(self._config(row, point))
                    with about(f"row {row.name!r}"):
                        check_weights(setup)
                    self._tests[row.name] = setup.config.data.test
                    self._inputs.of(arm.config, setup)
                    task = setup.task
                    metrics.setdefault((task.metric, task.better), row.name)
        if len(metrics) > 1:
            found = ", ".join(f"{name!r} {metric}" for (metric, _), name in metrics.items())
            raise UserError(f"rows: expected tasks with one metric, found {found}")
        return next(iter(metrics))

    def _config(self, row: RowSpec, point: Overrides) -> ml_collections.ConfigDict:
        return apply_overrides(self._base, {**row.overrides, **point})

    def _arm(self, row: RowSpec, point: Overrides, seed: int, share: float = 1.0) -> Arm:
        arm = make_arm(self._base, row.name, row.overrides, point, seed, share)
        return self._recorded.arm(arm, self._inputs.of(arm.config))

    def _tune(self, live: Live) -> dict[str, list[Trial]]:
        """Trains what the search proposes; returns the trials by row name."""
        trials: dict[str, list[Trial]] = {row.name: [] for row in self._rows}
        while True:
            proposals = {row.name: self._propose(row, trials) for row in self._rows}
            if not any(proposals.values()):
                return trials
            arms = {
                row.name: [
                    [self._arm(row, point, seed, share) for seed in self._study.tune_seeds]
                    for point, share in proposals[row.name]
                ]
                for row in self._rows
            }
            self._train([arm for of_row in arms.values() for of_point in of_row
                         for arm in of_point], live)  # fmt: skip
            for name, of_row in arms.items():
                for (point, share), of_point in zip(proposals[name], of_row, strict=True):
                    trials[name].append(Trial(point, share, self._validation_score(of_point)))

    def _propose(self, row: RowSpec, trials: dict[str, list[Trial]]) -> list[Proposal]:
        of_table = {x.name: trials[x.name] for x in self._rows if x.table == row.table}
        return self._search.propose(row, of_table)

    def _validation_score(self, arms: Sequence[Arm]) -> float | None:
        """Mean validation score of arms, where more is better; None if an arm failed."""
        values: list[float] = []
        for arm in arms:
            scores = self._ledger.get(arm.key, TRAINED).get("validation") or {}
            if (value := self._value(arm, scores)) is None:
                return None
            values.append(value)
        mean = math.fsum(values) / len(values)
        if not math.isfinite(mean):
            return None
        return mean if self._better == "max" else -mean

    def _value(self, arm: Arm, scores: dict[str, Any]) -> float | None:
        """The metric of recorded scores; None where it is undefined."""
        value = scores.get(self._metric)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UserError(
                f"{self._workdir / 'results.jsonl'}: the {self._metric} of the arm {arm.key} is "
                f"{str(value):.40}, which is no number; remove its lines, and the arm runs again"
            )
        return value

    def _train(self, arms: Sequence[Arm], live: Live) -> None:
        """Trains the arms that have no record; each unit has arms of one structure."""
        missing: dict[str, Arm] = {}
        for arm in arms:
            if self._ledger.find(arm.key, TRAINED) is None:
                missing.setdefault(arm.key, arm)
        groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        for arm in missing.values():
            groups.setdefault(structure(arm.config), []).append((self._folder(arm), arm.config))
        size = self._unit_arms or len(missing)
        units = [
            worker.train_unit(group[i : i + size], accept_changed_data=self._accept)
            for group in groups.values()
            for i in range(0, len(group), size)
        ]

        def collect() -> None:
            for key, arm in list(missing.items()):
                result = worker.read_result(self._folder(arm))
                if result is not None:
                    self._recorded.require_expected(arm, self._inputs.of(arm.config), result)
                    self._ledger.append(trained_record(arm, result))
                    live.ended(arm.row, self._ledger.get(key, TRAINED), self._metric)
                    del missing[key]

        self._launch(units, "train", len(missing), collect, live)
        _require_none(missing)

    def _score(self, arms: dict[str, list[Arm]], live: Live) -> None:
        """Scores the chosen arms that have trained and have no record of their scores."""
        specs = {row.name: self._score_spec(row) for row in self._rows}
        missing = {
            arm.key: arm
            for name, of_row in arms.items()
            for arm in of_row
            if specs[name]["test"]
            and "error" not in self._ledger.get(arm.key, TRAINED)
            and self._ledger.find(arm.key, scored_kind(specs[name])) is None
        }
        units = []
        for name in arms:
            folders = [self._folder(arm) for arm in missing.values() if arm.row == name]
            if folders:
                # A difference between the inputs of an arm and of its run was accepted above.
                accept = any(arm.known_as for arm in missing.values() if arm.row == name)
                units.append(
                    worker.score_unit(
                        folders, specs[name], accept_changed_data=accept or self._accept
                    )
                )

        def collect() -> None:
            for key, arm in list(missing.items()):
                scores = worker.read_scores(self._folder(arm), specs[arm.row])
                if scores is not None:
                    self._ledger.append(scored_record(arm, specs[arm.row], scores))
                    live.ended(arm.row)
                    del missing[key]

        self._launch(units, "score", len(missing), collect, live)
        _require_none(missing)

    def _score_spec(self, row: RowSpec) -> worker.ScoreSpec:
        study = self._study
        return {
            "test": self._tests[row.name],
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
        """Writes unit files and gives them to the launcher.

        Arms that had ended before an earlier crash are only collected.
        """
        live.expect(what, count)
        collect()
        folder = self._workdir / "units"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
        paths = []
        for number, unit in enumerate(units):
            path = folder / f"{what}_{number:04d}.json"
            write_json(path, unit)
            if not worker.finished(path):
                paths.append(path)
        if paths:
            try:
                self._launcher.run(paths, collect)
            except Interrupted as error:
                collect()
                raise Interrupted(
                    error.number,
                    f"interrupted; {len(self._ledger)} records of finished arms are in "
                    f"{self._workdir / 'results.jsonl'}; the same command continues with the rest",
                    saved=True,
                ) from None
            collect()
        for path in folder.glob(f"{what}_*.json"):
            path.unlink()

    def _folder(self, arm: Arm) -> Path:
        return (self._workdir / "runs" / arm.key).absolute()

    def _table_row(
        self, row: RowSpec, trials: Sequence[Trial], chosen: Trial | None, arms: Sequence[Arm]
    ) -> TableRow:
        records = {arm.seed: self._ledger.get(arm.key, TRAINED) for arm in arms}
        finished = {seed: r for seed, r in records.items() if "error" not in r}
        spec = self._score_spec(row)
        scores = {
            arm.seed: record
            for arm in arms
            if (record := self._ledger.find(arm.key, scored_kind(spec)))
        }
        for arm in arms:
            for found, split in ((finished, "validation"), (scores, "test")):
                if arm.seed in found:
                    self._value(arm, found[arm.seed][split])
        others: dict[str, dict[int, dict[str, Any]]] = {}
        for seed, record in scores.items():
            for name, value in record["others"].items():
                others.setdefault(name, {})[seed] = value
        costs = [record["cost"] for record in finished.values()]
        # Trials of all lengths count: the short rungs of halving try all points.
        points = [trial.point for trial in trials]
        return TableRow(
            spec=row,
            point=chosen.point if chosen else None,
            edges=tuple(edges(chosen.point, points)) if chosen else (),
            trials=tuple(trials),
            budget=budget(trials) * len(self._study.tune_seeds),
            validation={seed: record["validation"] for seed, record in finished.items()},
            test={seed: record["test"] for seed, record in scores.items()},
            others=others,
            predictions={
                arm.seed: worker.predictions_file(self._folder(arm), spec)
                for arm in arms
                if arm.seed in scores
            },
            cost=RunCost(**costs[0]) if costs else None,
            errors={seed: r["error"] for seed, r in records.items() if "error" in r},
        )


def _require_none(missing: Mapping[str, Arm]) -> None:
    """Raises UserError if arms have no result although their units have ended."""
    if missing:
        arm = next(iter(missing.values()))
        raise UserError(
            f"{len(missing)} arms have no readable result, such as {arm.row!r} with seed "
            f"{arm.seed} in runs/{arm.key}; call the command again to run them"
        )

"""Runs a unit: trains arms with the same structure, or scores chosen arms.

python -m finetune_jax.ablation.worker UNIT.json [PARENT]

With the process id of its parent, the worker ends with its parent, as after a signal: its arms save
checkpoints.

The results of an arm are in its own folder: ``trained.json`` or ``error.json`` after training,
``scores_HASH.json`` and ``predictions_HASH.npz`` after scoring, where HASH identifies the score
specification. If a unit is interrupted, it is run again and continues with the arms that have not
ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from absl import logging

from finetune_jax import cli
from finetune_jax import config as config_lib
from finetune_jax.artifact import Artifact
from finetune_jax.artifact.providers import packages_of
from finetune_jax.evaluation import drift
from finetune_jax.evaluation.corrupted import corrupted_scores
from finetune_jax.evaluation.evaluator import open_evaluator, read_config
from finetune_jax.evaluation.predictions import predict_split, save_predictions
from finetune_jax.evaluation.shifts import shifted_scores
from finetune_jax.files import read_json, write_json
from finetune_jax.interruption import end_with_parent
from finetune_jax.locks import FolderLock
from finetune_jax.mesh import use_cpu_devices
from finetune_jax.setup import Setup, open_setup
from finetune_jax.training.arms import run_arms, structure


class ScoreSpec(TypedDict):
    """What the chosen arms of a row are scored on, as JSON.

    Attributes:
      test: test split in the format of ``data.test``; empty if the arms are not scored.
      corruptions: see `Study`.
      severity: severity of the corruptions; empty without corruptions.
      shifts: see `Study`.
      drift: see `Study`.
    """

    test: str
    corruptions: str
    severity: str
    shifts: str
    drift: bool


def spec_hash(spec: ScoreSpec) -> str:
    """First 8 hex digits of the SHA-256 of a score specification."""
    text = json.dumps(spec, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def predictions_file(folder: Path, spec: ScoreSpec) -> Path:
    """Path of the test predictions in the folder of an arm."""
    return folder / f"predictions_{spec_hash(spec)}.npz"


def train_unit(arms: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """The content of a unit file that trains arms.

    Args:
      arms: folder and resolved config of each arm.
    """
    return {"what": "train", "arms": [{"folder": str(f), "config": c} for f, c in arms]}


def score_unit(folders: Sequence[Path], spec: ScoreSpec) -> dict[str, Any]:
    """The content of a unit file that scores arms that have trained.

    Args:
      folders: folders of the arms.
      spec: what all of these arms are scored on.
    """
    return {"what": "score", "arms": [{"folder": str(f), "asked": spec} for f in folders]}


def run_unit(path: Path, done: Callable[[], None] = lambda: None) -> None:
    """Runs a unit, except for arms that have ended.

    Args:
      path: path of the unit file.
      done: called after each arm.

    Raises:
      UserError: not a unit file, or an error that does not belong to one arm.
    """
    unit = read_json(path)
    missing = [arm for arm in unit["arms"] if not _has_ended(arm)]
    if unit["what"] == "train":
        _train(missing, done)
    else:
        for arm in missing:
            folder = Path(arm["folder"])
            with FolderLock(folder):
                _score(folder, arm["asked"])
            done()


def finished(path: Path) -> bool:
    """Whether every arm of a unit has ended."""
    unit = read_json(path)
    return all(_has_ended(arm) for arm in unit["arms"])


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of an arm's training, or ``{"error": message}``; None if it has not ended."""
    # error.json is read first: an arm that failed has no artifact, whatever other files it has.
    for name in ("error.json", "trained.json"):
        if (folder / name).is_file():
            return read_json(folder / name)
    return None


def read_scores(folder: Path, spec: ScoreSpec) -> dict[str, Any] | None:
    """``test`` and ``others`` scores of an arm; None if the arm was not scored on this."""
    path = _scores_file(folder, spec)
    return read_json(path) if path.is_file() else None


def _scores_file(folder: Path, spec: ScoreSpec) -> Path:
    return folder / f"scores_{spec_hash(spec)}.json"


def _has_ended(arm: dict[str, Any]) -> bool:
    folder = Path(arm["folder"])
    found = read_scores(folder, arm["asked"]) if "asked" in arm else read_result(folder)
    return found is not None


def _train(arms: Sequence[dict[str, Any]], done: Callable[[], None]) -> None:
    folders = [Path(arm["folder"]) for arm in arms]
    setups = _open_setups([arm["config"] for arm in arms])

    def write_result(number: int, result: dict[str, Any]) -> None:
        folder = folders[number]
        folder.mkdir(parents=True, exist_ok=True)
        if "error" in result:  # checkpoints stay: one may still be being written
            write_json(folder / "error.json", result)
        else:  # the run is complete, and the checkpoints of many arms would fill the disk
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            write_json(folder / "trained.json", result)
        done()

    run_arms(setups, folders, done=write_result)


def _open_setups(configs: Sequence[dict[str, Any]]) -> list[Setup]:
    """The setup of each config; configs with the same structure share everything but the config."""
    by_structure: dict[str, Setup] = {}
    setups = []
    for values in configs:
        config, key = config_lib.from_json(values), structure(values)
        if key not in by_structure:
            by_structure[key] = open_setup(config)
        config_lib.validate(config)
        setups.append(dataclasses.replace(by_structure[key], config=config))
    return setups


def _score(folder: Path, spec: ScoreSpec) -> None:
    """Scores an arm on the test split, and writes its scores and predictions."""
    config = read_config(folder)
    config.data.test = spec["test"]
    use_cpu_devices(config.mesh.cpu_devices)
    evaluator = open_evaluator(config, Artifact.load(folder, allow_imports=packages_of(config)))
    predictions = predict_split(evaluator, "test")
    save_predictions(predictions_file(folder, spec), predictions)
    others: dict[str, Any] = {}
    if spec["corruptions"]:
        others["corruptions"] = corrupted_scores(
            evaluator, "test", spec["corruptions"], spec["severity"]
        )
    if spec["shifts"]:
        others["shifts"] = shifted_scores(evaluator, predictions.observed, spec["shifts"], "")
    if spec["drift"]:
        others["drift"] = drift.feature_drift(evaluator, drift.load_start(evaluator, ""), "test")
    scores = evaluator.scores(predictions.observed)
    write_json(_scores_file(folder, spec), {"test": scores, "others": others})


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    if len(arguments) not in (1, 2):
        print("usage: python -m finetune_jax.ablation.worker UNIT.json [PARENT]", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)
    if len(arguments) == 2:
        end_with_parent(int(arguments[1]))
    with cli.reported():
        run_unit(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

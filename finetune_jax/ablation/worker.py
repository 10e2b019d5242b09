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

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from absl import logging

from finetune_jax import config as config_lib
from finetune_jax.artifact import Artifact
from finetune_jax.artifact.providers import packages_of
from finetune_jax.ending import reported
from finetune_jax.errors import UserError
from finetune_jax.evaluation import drift
from finetune_jax.evaluation.corrupted import corrupted_scores
from finetune_jax.evaluation.evaluator import open_evaluator, read_config
from finetune_jax.evaluation.predictions import predict_split, save_predictions
from finetune_jax.evaluation.shifts import shifted_scores
from finetune_jax.files import read_json, require_seal, seal, write_json
from finetune_jax.identity import require_same_parts, versions
from finetune_jax.interruption import end_with_parent
from finetune_jax.locks import FolderLock
from finetune_jax.mesh import use_cpu_devices
from finetune_jax.progress import say
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


def train_unit(
    arms: Sequence[tuple[Path, dict[str, Any]]], *, accept_changed_data: bool = False
) -> dict[str, Any]:
    """The content of a unit file that trains arms, with its checksum.

    Args:
      arms: folder and resolved config of each arm.
      accept_changed_data: see `training.loop.train`.
    """
    content = [{"folder": str(f), "config": c} for f, c in arms]
    return seal({"what": "train", "arms": content, "accept_changed_data": accept_changed_data})


def score_unit(
    folders: Sequence[Path], spec: ScoreSpec, *, accept_changed_data: bool = False
) -> dict[str, Any]:
    """The content of a unit file that scores arms that have trained, with its checksum.

    Args:
      folders: folders of the arms.
      spec: what all of these arms are scored on.
      accept_changed_data: whether to score arms that were trained on other data.
    """
    content = [{"folder": str(f), "asked": spec} for f in folders]
    return seal({"what": "score", "arms": content, "accept_changed_data": accept_changed_data})


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Writes the result of an arm's training, or ``{"error": message}``, with its checksum."""
    if "error" in result:
        _write(folder / "error.json", result)
        return
    _write(folder / "trained.json", result)
    with contextlib.suppress(FileNotFoundError):  # the error of an earlier try, if there was one
        (folder / "error.json").unlink()


def write_scores(folder: Path, spec: ScoreSpec, scores: dict[str, Any]) -> None:
    """Writes what `read_scores` returns, with its checksum."""
    _write(_scores_file(folder, spec), scores)


def run_unit(path: Path, done: Callable[[], None] = lambda: None) -> None:
    """Runs a unit, except for arms that have ended.

    Args:
      path: path of the unit file.
      done: called after each arm.

    Raises:
      UserError: not a unit file, or an error that does not belong to one arm.
    """
    unit = _read_unit(path)
    accept = unit["accept_changed_data"]
    missing = [arm for arm in unit["arms"] if not _has_ended(arm)]
    if unit["what"] == "train":
        _train(missing, accept, done)
    else:
        for arm in missing:
            folder = Path(arm["folder"])
            with FolderLock(folder):
                _score(folder, arm["asked"], accept)
            done()


def finished(path: Path) -> bool:
    """Whether every arm of a unit has ended."""
    return all(_has_ended(arm) for arm in _read_unit(path)["arms"])


def _read_unit(path: Path) -> dict[str, Any]:
    return require_seal(read_json(path), str(path))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of an arm's training, or ``{"error": message}``.

    Returns:
      None if the arm has not ended, or if its result is damaged. The arm then runs again, which
      takes little time if its run is complete.
    """
    # error.json is read first: an arm that failed has no artifact, whatever other files it has.
    return _read(folder / "error.json") or _read(folder / "trained.json")


def read_scores(folder: Path, spec: ScoreSpec) -> dict[str, Any] | None:
    """``test`` and ``others`` scores of an arm, and ``made_of``, what it was scored on.

    Returns:
      None if the arm was not scored on this, or if the scores are damaged.
    """
    return _read(_scores_file(folder, spec))


def _read(path: Path) -> dict[str, Any] | None:
    """A result with its own checksum; None if there is none."""
    if not path.exists():
        return None
    try:
        return require_seal(read_json(path), str(path))
    except UserError as error:
        say(f"{error}; it is computed again")
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, seal(content))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _scores_file(folder: Path, spec: ScoreSpec) -> Path:
    return folder / f"scores_{spec_hash(spec)}.json"


def _has_ended(arm: dict[str, Any]) -> bool:
    folder = Path(arm["folder"])
    found = read_scores(folder, arm["asked"]) if "asked" in arm else read_result(folder)
    return found is not None


def _train(arms: Sequence[dict[str, Any]], accept: bool, done: Callable[[], None]) -> None:
    folders = [Path(arm["folder"]) for arm in arms]
    setups = _open_setups([arm["config"] for arm in arms])

    def end(number: int, result: dict[str, Any]) -> None:
        # The checkpoints of many arms would fill the disk. Those of an arm that failed stay: one
        # may still be being written.
        if "error" not in result:
            shutil.rmtree(folders[number] / "checkpoints", ignore_errors=True)
        write_result(folders[number], result)
        done()

    run_arms(setups, folders, done=end, accept_changed_data=accept)


def _open_setups(configs: Sequence[dict[str, Any]]) -> list[Setup]:
    """The setup of each config; configs with the same structure share everything but the config."""
    by_structure: dict[str, Setup] = {}
    setups = []
    for values in configs:
        config, key = config_lib.from_json(values), structure(values)
        if key not in by_structure:
            by_structure[key] = open_setup(config)
        config_lib.validate(config)
        settled = by_structure[key].config
        config.model.name = settled.model.name
        config.pretrained.path = settled.pretrained.path
        config.data = settled.data
        setups.append(dataclasses.replace(by_structure[key], config=config))
    return setups


def _score(folder: Path, spec: ScoreSpec, accept: bool) -> None:
    """Scores an arm on the test split, and writes its scores and predictions."""
    config = read_config(folder)
    config.data.test = spec["test"]
    use_cpu_devices(config.mesh.cpu_devices)
    evaluator = open_evaluator(config, Artifact.load(folder, allow_imports=packages_of(config)))
    known = evaluator.artifact.card.get("made_of", {}) if evaluator.artifact else {}
    made_of = {**known, "data": evaluator.source.identity, "versions": versions()}
    require_same_parts(known, made_of, f"{folder}: the arm", accept=accept)
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
    write_scores(folder, spec, {"test": scores, "others": others, "made_of": made_of})


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    if len(arguments) not in (1, 2):
        print("usage: python -m finetune_jax.ablation.worker UNIT.json [PARENT]", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)
    if len(arguments) == 2:
        end_with_parent(int(arguments[1]))
    with reported():
        run_unit(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

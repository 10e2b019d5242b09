"""Does what a unit says: trains arms that share a structure, or scores chosen ones.

python -m finetune_jax.ablation.worker UNIT.json

What comes of an arm is in its own folder: ``trained.json`` or ``error.json`` of its training,
``scores_NAME.json`` and ``predictions_NAME.npz`` of its scoring, named by what was asked. So a unit
that was cut short is run again, and goes on with what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_jax.errors import UserError
from finetune_jax.files import plain, read_json, write_json

if TYPE_CHECKING:
    from finetune_jax.setup import Setup

Asked = dict[str, Any]
"""Of an arm that has trained: ``test``, the text of its split, and ``corruptions``, ``severity``,
``shifts`` and ``drift`` of the `Study`."""


def name_of(asked: Asked) -> str:
    """First 8 hex digits of the SHA-256 of what is asked: other questions have other answers."""
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def predictions_of(folder: Path, asked: Asked) -> Path:
    """Where an arm keeps what it said of each test example."""
    return folder / f"predictions_{name_of(asked)}.npz"


def train_unit(arms: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """The content of a unit that trains.

    Args:
      arms: folder and resolved config of each.
    """
    return {"what": "train", "arms": [{"folder": str(f), "config": c} for f, c in arms]}


def score_unit(folders: Sequence[Path], asked: Asked) -> dict[str, Any]:
    """The content of a unit that scores arms that have trained.

    Args:
      folders: of the arms.
      asked: of all of them.
    """
    return {"what": "score", "arms": [{"folder": str(f), "asked": asked} for f in folders]}


def run_unit(path: Path, done: Callable[[], None] = lambda: None) -> None:
    """Does what a unit says, as far as it is not done yet.

    Args:
      path: of the unit.
      done: called after each arm.

    Raises:
      UserError: not a unit, or what no arm is to blame for.
    """
    unit = read_json(path)
    missing = [arm for arm in unit["arms"] if not _ended(arm)]
    if unit["what"] == "train":
        _train(missing, done)
    else:
        for arm in missing:
            _score(Path(arm["folder"]), arm["asked"])
            done()


def finished(path: Path) -> bool:
    """Whether every arm of a unit has come to its end."""
    unit = read_json(path)
    return all(_ended(arm) for arm in unit["arms"])


def trained(folder: Path) -> dict[str, Any] | None:
    """The figures of an arm's training, or ``{"error": message}``; None if it has not ended."""
    # An arm that failed has no artifact; one that has ended has all of its files.
    for name in ("error.json", "trained.json"):
        if (folder / name).is_file():
            return read_json(folder / name)
    return None


def scored(folder: Path, asked: Asked) -> dict[str, Any] | None:
    """The scores of an arm; None if it was not asked."""
    path = _scores_of(folder, asked)
    return read_json(path) if path.is_file() else None


def _scores_of(folder: Path, asked: Asked) -> Path:
    return folder / f"scores_{name_of(asked)}.json"


def _ended(arm: dict[str, Any]) -> bool:
    folder = Path(arm["folder"])
    found = scored(folder, arm["asked"]) if "asked" in arm else trained(folder)
    return found is not None


def _train(arms: Sequence[dict[str, Any]], done: Callable[[], None]) -> None:
    from finetune_jax.training.arms import run_arms

    folders = [Path(arm["folder"]) for arm in arms]
    setups = _prepare([arm["config"] for arm in arms])

    def ended(number: int, result: dict[str, Any]) -> None:
        folder = folders[number]
        folder.mkdir(parents=True, exist_ok=True)
        if "error" in result:  # what is still being saved is left alone
            write_json(folder / "error.json", result)
        else:  # nobody continues it any more, and an ablation has many
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            write_json(folder / "trained.json", plain(result))
        done()

    run_arms(setups, folders, done=ended)


def _prepare(configs: Sequence[dict[str, Any]]) -> list[Setup]:
    """The setups of some configs; what follows from the structure alone is made once."""
    from finetune_jax import config as config_lib
    from finetune_jax.setup import open_setup
    from finetune_jax.training.arms import structure

    known: dict[str, Setup] = {}
    setups = []
    for values in configs:
        config, text = config_lib.from_json(values), structure(values)
        if text not in known:
            known[text] = open_setup(config)
        config_lib.validate(config)
        setups.append(dataclasses.replace(known[text], config=config))
    return setups


def _score(folder: Path, asked: Asked) -> None:
    """Scores an arm on the test split, once, and keeps what it said of each example."""
    from finetune_jax.artifact import load_artifact
    from finetune_jax.evaluation.predictions import predict_split, save_predictions
    from finetune_jax.evaluation.subject import open_subject, read_config
    from finetune_jax.mesh import use_cpu_devices

    config = read_config(folder)
    config.data.test = asked["test"]
    use_cpu_devices(config.mesh.cpu_devices)
    subject = open_subject(config, load_artifact(folder))
    predictions = predict_split(subject, "test")
    save_predictions(predictions_of(folder, asked), predictions)
    others: dict[str, Any] = {}
    if asked["corruptions"]:
        from finetune_jax.evaluation.corrupted import corrupted_scores

        others["corruptions"] = corrupted_scores(
            subject, "test", asked["corruptions"], asked["severity"]
        )
    if asked["shifts"]:
        from finetune_jax.evaluation.shifts import shifted_scores

        others["shifts"] = shifted_scores(subject, predictions.observed, asked["shifts"], "")
    if asked["drift"]:
        from finetune_jax.evaluation import drift

        others["drift"] = drift.feature_drift(subject, drift.load_base(subject, ""), "test")
    scores = subject.scores(predictions.observed)
    write_json(_scores_of(folder, asked), plain({"test": scores, "others": others}))


def main(arguments: Sequence[str]) -> int:
    """The command; returns its status."""
    from absl import logging

    if len(arguments) != 1:
        print("usage: python -m finetune_jax.ablation.worker UNIT.json", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)
    try:
        run_unit(Path(arguments[0]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

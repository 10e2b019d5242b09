"""What a model observed of every example, in a file, so that paired tests can be redone.

One compressed ``.npz`` without pickles: the task's observations, ``example``, which names each
example by its content, and ``about``, JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax import tasks
from finetune_jax.data.batches import Encoder
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.tasks import Task

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Observations of a split.

    Attributes:
      task: whose observations they are.
      observed: arrays [n, …] by name.
      example: content of each example, uint64[n], in the split's order; see `identity`.
      about: ``source``, ``split`` and its text, for people.
    """

    task: Task
    observed: dict[str, np.ndarray]
    example: np.ndarray
    about: dict[str, Any]

    @property
    def split_sha256(self) -> str:
        """SHA-256 (hex) of the examples in their order."""
        return hashlib.sha256(self.example.astype("<u8").tobytes()).hexdigest()

    def scores(self) -> dict[str, Any]:
        """The task's report, and ``n_scored``."""
        return {**self.task.report(self.observed), "n_scored": len(self.example)}


def identity(example: dict[str, Any]) -> int:
    """64 bits of the SHA-256 of an example as its source gives it, before any preprocessing.

    So two models that want other sizes of image still name the same examples alike.
    """
    digest = hashlib.sha256()
    for name, value in sorted(example.items()):
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            content = f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).data
        elif isinstance(value, bytes):
            content = value
        else:
            content = repr(value).encode()
        digest.update(f"{name}:{len(content)}:".encode())
        digest.update(content)
    return int.from_bytes(digest.digest()[:8], "little")


class _Named:
    """Puts `identity` into a batch; a part of an `Encoder`, so that workers can do it."""

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"identity": np.asarray(identity(example), np.uint64)}


def predict_split(evaluator: Evaluator, split: str) -> Predictions:
    """Runs a evaluator over a split of its config: ``train``, ``validation`` or ``test``."""
    examples, names = evaluator.examples(split), []

    def place(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        names.append(batch.pop("identity"))
        return evaluator.place(batch)

    encode = Encoder((*evaluator.encode.parts, _Named()))
    observed = evaluator.observe_examples(examples, encode, place)
    about = {
        "source": evaluator.source.name,
        "split": split,
        "split_text": evaluator.config.data[split],
    }
    return Predictions(evaluator.task, observed, np.concatenate(names)[: len(examples)], about)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes the file, whole or not at all.

    Raises:
      UserError: it cannot be written there.
    """
    about = {
        "version": _VERSION,
        "task": predictions.task.to_json(),
        "split_sha256": predictions.split_sha256,
        **predictions.about,
    }
    arrays: dict[str, Any] = {
        "example": predictions.example,
        "about": np.array(json.dumps(about)),
        **{f"observed/{name}": x for name, x in predictions.observed.items()},
    }
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror}") from None


def load_predictions(path: Path) -> Predictions:
    """Reads what `save_predictions` wrote.

    Raises:
      UserError: no such file, not one of ours, or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        example = arrays.pop("example")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (KeyError, ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: expected predictions written by evaluate --save_predictions: {error}"
        ) from None
    if about.get("version") != _VERSION:
        raise UserError(
            f"{path}: predictions of version {about.get('version')!r}, this code reads {_VERSION}"
        )
    observed = {name.removeprefix("observed/"): value for name, value in arrays.items()}
    return Predictions(tasks.from_json(about["task"]), observed, example, about)

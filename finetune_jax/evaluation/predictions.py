"""Predictions of a split in a file, so that paired tests can be repeated without the model.

The file is a compressed ``.npz`` without pickles. It holds what the task observed of each example,
``example``, a hash of the content of each example, and ``about``, a JSON object.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax import tasks, tree
from finetune_jax.data.batches import Encoder
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.evaluation.scores import NonFinitePredictions, require_finite
from finetune_jax.files import SEAL, parse_json, require_seal, seal
from finetune_jax.progress import say
from finetune_jax.tasks import Task

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model predicts for the examples of a split.

    Attributes:
      task: the task.
      observed: what the task observed, arrays [n, …] by name.
      example: hash uint64[n] of the content of each example, in the order of the split; see
        `identity`.
      about: ``source``, ``split`` and ``split_text`` (the split in the config), for messages.
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
        """The task's report, and ``n_scored``, the number of examples."""
        return {**self.task.report(self.observed), "n_scored": len(self.example)}


def identity(example: dict[str, Any]) -> int:
    """Returns 64 bits of the SHA-256 of an example as its source gives the example.

    The hash is taken before any preprocessing, so it is the same for models with different image
    sizes. The order of the columns does not matter.
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


class _IdentityPart:
    """A part of an `Encoder` that adds the `identity` of each example to a batch."""

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"identity": np.asarray(identity(example), np.uint64)}


def predict_split(evaluator: Evaluator, split: str) -> Predictions:
    """Predicts a split of the evaluator's config: ``train``, ``validation`` or ``test``."""
    examples = evaluator.examples(split)
    identities: list[np.ndarray] = []

    def place(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        identities.append(batch.pop("identity"))
        return evaluator.place(batch)

    encode = Encoder((*evaluator.encode.parts, _IdentityPart()))
    observed = evaluator.observe_examples(examples, encode, place)
    about = {
        "source": evaluator.source.name,
        "split": split,
        "split_text": evaluator.config.data[split],
    }
    return Predictions(evaluator.task, observed, np.concatenate(identities)[: len(examples)], about)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes predictions; after a crash the file is either complete or unchanged.

    Raises:
      UserError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        "example": predictions.example,
        **{f"observed/{name}": x for name, x in predictions.observed.items()},
    }
    about = {
        "version": _VERSION,
        "task": predictions.task.to_json(),
        "split_sha256": predictions.split_sha256,
        **predictions.about,
        "arrays": tree.checksums(arrays),
    }
    # The object as a reader gets it: JSON turns tuples into lists, and all keys into texts.
    arrays["about"] = np.array(json.dumps(seal(json.loads(json.dumps(about)))))
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write the file: {error.strerror}") from None


def load_predictions(path: Path) -> Predictions:
    """Reads a file that `save_predictions` has written.

    Raises:
      UserError: no such file, a file of another kind or of another version, a damaged file, or
        predictions that are not finite, which an older version may have written.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = parse_json(str(arrays.pop("about")))
        version, example = about.get("version"), arrays["example"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    # NumPy, zipfile and zlib raise any exception for a damaged file.
    except Exception as error:
        with path.open("rb") as opened:
            is_archive = opened.read(2) == b"PK"
        # NumPy advises to load other files as pickles, which can run code.
        other = "another kind of file; tables of `predict` have no labels to compare with"
        reason = " ".join(str(error).split()) if is_archive else other
        raise UserError(
            f"{path}: expected predictions written by evaluate --save_predictions: {reason}"
        ) from None
    if version != _VERSION:
        raise UserError(f"{path}: predictions of version {version!r}, this code reads {_VERSION}")
    if SEAL in about or "arrays" in about:
        about = require_seal(about, str(path))
        if tree.checksums(arrays) != about.pop("arrays"):
            raise UserError(f"{path}: the arrays do not have their checksums; it is damaged")
    else:
        say(f"{path}: written by an older version without checksums; it cannot be verified")
    del arrays["example"]
    observed = {name.removeprefix("observed/"): value for name, value in arrays.items()}
    try:
        require_finite(observed)
    except NonFinitePredictions as error:
        raise UserError(f"{path}: {error}") from None
    return Predictions(tasks.from_json(about["task"]), observed, example, about)

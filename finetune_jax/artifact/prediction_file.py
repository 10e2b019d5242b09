"""Predictions as a table or as JSON, in a file that is complete or absent.

A row of a table has the columns of the input (``image``, ``text``, or the two columns of a pair),
``prediction``, and the other values that the task reads from the outputs. ``class_1`` and
``probability_1`` (``share_1`` for segmentation) are the most probable class, ``class_2`` and
``probability_2`` the second most probable class. Several labels of one input are joined by ``|``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune_jax.artifact.folder import Artifact
from finetune_jax.artifact.items import PredictionInput
from finetune_jax.errors import UserError
from finetune_jax.files import write_json, write_text

RANKED = {"probabilities": "probability", "shares": "share"}
"""Keys of a reading whose value is a number by class in falling order, and the columns' names."""

SUFFIXES = (".csv", ".json")
"""File name suffixes of the files that `write_predictions` writes."""

PredictionRow = tuple[dict[str, str], dict[str, Any]]
"""The name of an input (`PredictionInput.named`), and what the task reads from its outputs."""


def require_writable(path: Path, flag: str) -> None:
    """Raises UserError if a file of predictions could not be written, before the work begins."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{flag}={path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag}={path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"{flag}={path}: expected a file, found a folder")


def predict_rows(
    artifact: Artifact,
    given: Sequence[PredictionInput],
    *,
    top: int | None,
    batch_size: int,
    on_bad_image: str = "error",
) -> list[PredictionRow]:
    """Predicts the inputs of `items.prediction_inputs`, in their order.

    Args:
      artifact: the model.
      given: the inputs.
      top: number of classes that are kept of each prediction, because all probabilities of many
        inputs may not fit in memory; None keeps all.
      batch_size, on_bad_image: as of `Artifact.predict`, whose errors are raised.
    """
    items = [one.item for one in given]
    readings = artifact.readings(items, batch_size, on_bad_image=on_bad_image)
    return [(given[number].named, cut(reading, top)) for number, reading in readings]


def cut(reading: dict[str, Any], top: int | None) -> dict[str, Any]:
    """A reading with the `top` highest classes only; None keeps all classes."""
    return {
        key: dict(list(value.items())[:top]) if key in RANKED else value
        for key, value in reading.items()
    }


def columns_of(reading: dict[str, Any]) -> dict[str, Any]:
    """A reading as columns of a table: ``prediction`` first."""
    rest = dict(reading)
    row: dict[str, Any] = {}
    if "label" in rest:
        row["prediction"] = rest.pop("label")
    elif "labels" in rest:
        row["prediction"] = "|".join(rest.pop("labels"))
    elif key := next((k for k in RANKED if rest.get(k)), None):
        row["prediction"] = next(iter(rest[key]))
    elif key := next((k for k, v in rest.items() if not isinstance(v, dict | list)), None):
        row["prediction"] = rest.pop(key)
    for key, value in rest.items():
        if key in RANKED:
            for place, (name, number) in enumerate(value.items(), 1):
                row |= {f"class_{place}": name, f"{RANKED[key]}_{place}": number}
        elif isinstance(value, dict):
            row |= {f"{key}_{name}": number for name, number in value.items()}
        else:
            row[key] = json.dumps(value) if isinstance(value, list) else value
    return row


def write_predictions(path: Path, rows: Iterable[PredictionRow]) -> None:
    """Writes a table (``.csv``, UTF-8) or a JSON array (``.json``) of predictions.

    After a crash the file has the old or the new content.
    """
    if path.suffix.lower() == ".json":
        write_json(path, [{**named, **reading} for named, reading in rows])
        return
    table = [{**named, **columns_of(reading)} for named, reading in rows]
    columns = list(dict.fromkeys(column for row in table for column in row))
    text = io.StringIO(newline="")
    # All texts are quoted: the module would leave a carriage return in a text without quotes.
    writer = csv.DictWriter(text, columns, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(table)
    write_text(path, text.getvalue())

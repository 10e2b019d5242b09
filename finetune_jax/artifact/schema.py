"""What ``artifact.json`` must hold: types, ranges, and parts that fit each other.

`card_of` returns the content of a card, or raises a `UserError` that names the key. The values of a
task, of the preprocessing and of the deltas are checked where these are built from their JSON.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from finetune_jax.data.preprocess import Preprocess
from finetune_jax.errors import UserError
from finetune_jax.files import SEAL, read_json, require_seal
from finetune_jax.models import DTYPES, entry_of
from finetune_jax.pretrained.formats.roles import ROLES
from finetune_jax.progress import say
from finetune_jax.run_folders import no_run
from finetune_jax.schema import (
    LARGEST_SIDE,
    an_object,
    integer,
    list_of,
    mapping,
    maybe,
    record,
    text,
)
from finetune_jax.tasks import Task

VERSION = 2
"""Version of the cards that are written. A card of version 1 has no checksum and is read, too."""

FILE = "artifact.json"


def _sha256(value: Any, key: str) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise UserError(f"{key}: expected the 64 digits of a SHA-256, found {value!r:.80}")
    return value


_FEW = text(1000)

_SELECTION = {
    "weights": text(choices=ROLES),
    "prefix": _FEW,
    "ignored": list_of(text(), most=100_000),
}

CARD = {
    "version": integer(1, VERSION),
    "model": record(
        {
            "name": text(1000, least=1),
            "family": _FEW,
            "num_classes": integer(1, 10**6),
            # Of a model of texts, the number of tokens.
            "image_size": integer(1, LARGEST_SIDE),
            "dtype": text(choices=DTYPES),
        },
        {"head": _FEW},
    ),
    "task": record({"name": _FEW}, rest=True),
    "preprocess": record({"kind": _FEW, "size": integer(1, LARGEST_SIDE)}, rest=True),
    "contents": text(choices=("all", "delta")),
    "base": record(
        {"file": maybe(text())},
        {"sha256": maybe(_sha256), "name_map": _FEW, "origin": _FEW, **_SELECTION},
        rest=True,
    ),
    "fingerprint": _sha256,
}
"""Check of each key that every card has."""

OPTIONAL = {
    "own_fingerprint": _sha256,
    "deltas": list_of(record({"kind": _FEW, "module": _FEW}, rest=True), most=100_000),
    "base_dtypes": mapping(text(choices=DTYPES)),
    "quantized": mapping(text(100)),
    "quantization": an_object,
    "scores": mapping(an_object),
    "plan": record({"scheme": text(10**6)}, {"providers": list_of(mapping(_FEW))}, rest=True),
    "made_of": an_object,
    "accepted": list_of(an_object),
    "providers": list_of(record({"door": _FEW}, {"package": _FEW, "version": _FEW})),
}
"""Check of each key that a card may have."""


def read_card(folder: Path) -> dict[str, Any]:
    """Reads and checks the card of an artifact.

    Raises:
      UserError: no card there, a card of another version, or one that was changed or is damaged;
        or a value of another type or out of its range.
    """
    path = folder / FILE
    if not folder.is_dir():
        where = no_run(folder)
        raise UserError(f"{folder}: no such folder; expected a run or its artifact{where}")
    if not path.is_file():
        where = no_run(folder) or "; did the run end?"
        raise UserError(f"{folder}: no artifact here ({FILE} is missing){where}")
    content = read_json(path)
    version = content.get("version")
    if version not in (1, VERSION) or isinstance(version, bool):
        raise UserError(
            f"{folder}: artifact version {version!r:.80}, this code reads 1 to {VERSION}"
        )
    if version == 1 and SEAL not in content:
        say(f"{path} is of an older version and has no checksum: changes of it are not noticed")
    else:
        content = require_seal(content, str(path))
    return card_of(content, str(path))


def card_of(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Checks the types and the ranges of a card.

    A key at the top that this version does not know is reported, and not read.

    Raises:
      UserError: a missing key, or a value of another type or out of its range.
    """
    try:
        card = record(CARD, OPTIONAL, rest=True)(content, "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if unknown := sorted(card.keys() - CARD.keys() - OPTIONAL.keys()):
        say(f"{where}: unknown keys, which are not read: {', '.join(unknown):.200}")
    return card


def require_consistent(
    card: dict[str, Any], task: Task, preprocess: Preprocess, where: str
) -> None:
    """Raises UserError where the parts of an artifact do not fit each other.

    Args:
      card: checked content of ``artifact.json``.
      task: its task.
      preprocess: its preprocessing.
      where: name of the artifact, for messages.
    """
    model, size = card["model"], preprocess.size
    pairs: list[tuple[str, Any, str, Any]] = [
        ("model.num_classes", model["num_classes"], "the task's outputs", task.head_size),
        ("model.image_size", model["image_size"], "preprocess.size", size),
        ("task.size", getattr(task, "size", size), "preprocess.size", size),
    ]
    crop = getattr(preprocess, "crop", None)
    pairs += [("task.crop", getattr(task, "crop", crop), "preprocess.crop", crop)]
    takes_texts = entry_of(model["name"]).tokens
    pairs += [("preprocess.kind", preprocess.kind == "text", "a model of texts", takes_texts)]
    views = 2 if preprocess.kind == "image pair" else task.views
    if preprocess.kind != "text":
        pairs += [("preprocess.kind", views, "the inputs of the task", task.views)]
    for key, ours, other, theirs in pairs:
        if ours != theirs:
            raise UserError(
                f"{where}: {key} is {ours!r:.80}, which does not fit {other}, {theirs!r:.80}; "
                f"the artifact was changed"
            )

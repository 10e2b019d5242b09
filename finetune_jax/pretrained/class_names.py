"""Class names of a published head, so that a new head can copy the classes that both share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_jax.data.classes import listed
from finetune_jax.errors import UserError
from finetune_jax.files import read_json
from finetune_jax.progress import say, say_once
from finetune_jax.tables import shown


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Ordered class names from a file.

    Args:
      path: a text file with one name per line, or a JSON file: a list, a ``config.json`` of
        Hugging Face, whose ``id2label`` is read, or Keras' ``imagenet_class_index.json``, which
        maps numbers to WordNet ID and name.

    Raises:
      UserError: no such file, another format, a name given twice, or numbers with a gap.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: class names cannot be read: {error}") from None
    names = _from_json(path, text) if path.suffix == ".json" else text.splitlines()
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or "" in names or repeated:
        found = f"{repeated[0]!r} twice" if repeated else "an empty name" if names else "none"
        raise UserError(f"{path}: expected one name per class, found {found}")
    return tuple(names)


def artifact_class_names(path: Path) -> tuple[str, ...]:
    """Class names of the artifact in a folder, or of the run in it; empty where there are none."""
    for place in (path, path / "artifact"):
        if (place / "artifact.json").is_file():
            task = read_json(place / "artifact.json").get("task")
            names = task.get("class_names") if isinstance(task, dict) else None
            return tuple(map(str, names)) if isinstance(names, list) else ()
    return ()


def described_class_names(folder: Path | None) -> tuple[str, ...]:
    """Class names in the ``config.json`` of transformers or timm in a folder.

    Returns:
      Names by class number; empty where there is no such file, neither ``id2label`` nor timm's
      ``label_names``, or only names that transformers made up (``LABEL_0``).
    """
    path = folder / "config.json" if folder else None
    described = read_json(path) if path and path.is_file() else {}
    timm = described.get("pretrained_cfg")
    listed_names = described.get("label_names") or (
        timm.get("label_names") if isinstance(timm, dict) else None
    )
    if isinstance(listed_names, list) and listed_names:
        return tuple(map(str, listed_names))
    labels = described.get("id2label")
    if not isinstance(labels, dict) or {*labels} != {str(i) for i in range(len(labels))}:
        return ()
    names = [str(labels[str(i)]) for i in range(len(labels))]
    made_up = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return () if made_up else tuple(names)


def compare_described(source: str, described: Sequence[str], ours: Sequence[str]) -> None:
    """Compares the classes of the data with those that a file beside a weight file describes.

    Names are compared without case. If the names are completely different, such as WordNet numbers
    in place of words, a warning is printed, because the order may still be right.

    Args:
      source: ``pretrained.path``, for the message.
      described: result of `described_class_names`.
      ours: class names of the data; empty for a task without classes.

    Raises:
      UserError: the names are the same in another order.
    """
    one, other = ([_plain(name) for name in names] for names in (described, ours))
    if not described or not ours or one == other:
        return
    if sorted(one) == sorted(other):
        require_same_classes(source, described, ours)
    say(
        shown(
            f"pretrained.path={source}: config.json describes other classes than the data has; "
            f"the head is kept, by number\n  data: {listed(ours)}\n  head: {listed(described)}"
        )
    )


def say_by_number(source: str, ours: Sequence[str]) -> None:
    """Says that a head is kept whose classes no file names.

    Args:
      source: ``pretrained.path``, for the line.
      ours: class names of the data; nothing is said for a task without classes.
    """
    if ours:
        numbered = listed([f"{number} {name}" for number, name in enumerate(ours)])
        say_once(
            shown(
                f"pretrained.path={source}: no file names the classes of its head, which is kept; "
                f"its outputs are taken for the classes of the data by number: {numbered}"
            )
        )


def require_same_classes(source: str, known: Sequence[str], ours: Sequence[str]) -> None:
    """Checks that the head of a weight file has the classes of the data, in the same order.

    Args:
      source: ``pretrained.path``, for the message.
      known: class names of the head; empty where the file does not have them.
      ours: class names of the data; empty for a task without classes.

    Raises:
      UserError: the names differ; the message lists both.
    """
    if known and ours and tuple(known) != tuple(ours):
        raise UserError(
            f"pretrained.path={source}: its head has other classes, or the same in another "
            f"order\n  data: {listed(ours)}\n  head: {listed(known)}\nset "
            f"--config.pretrained.new_head=True for a new head, or data.class_order for the order "
            f"of the head"
        )


def _from_json(path: Path, text: str) -> list[str]:
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if isinstance(content, dict):
        content = content.get("id2label", content)
        if not isinstance(content, dict) or not all(str(i) in content for i in range(len(content))):
            raise UserError(f"{path}: expected class numbers from 0 without a gap")
        content = [content[str(i)] for i in range(len(content))]
    # Keras' index has [WordNet ID, name].
    names = [entry[-1] if isinstance(entry, list) and entry else entry for entry in content]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected class names as text")
    return names


def _plain(name: str) -> str:
    return name.lower().replace("_", " ")


def shared_rows(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """``{our class number: their class number}`` of the names in both lists, ignoring case.

    Raises UserError if the two lists share no name.
    """

    numbers = {_plain(name): number for number, name in enumerate(theirs)}
    rows = {i: numbers[_plain(name)] for i, name in enumerate(ours) if _plain(name) in numbers}
    if not rows:
        raise UserError(
            f"pretrained.head_init: 'copy' needs shared class names; ours are "
            f"{', '.join(ours[:8])}, the file's {', '.join(theirs[:8])}"
        )
    return rows

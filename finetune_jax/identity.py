"""The identity of a run's inputs (data, tokenizer, weights, teacher), and the library versions.

Two runs of one config have the same inputs if these identities are equal, wherever the files are
and whenever they were written. Checkpoints, artifacts and ledgers of ablations keep the identities,
and a run is not continued with other inputs unless its user accepts that. ``made_of`` is the name
of this record in the code and in files.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import finetune_jax
from finetune_jax import files
from finetune_jax.data.listing import content_digest, unpack_names
from finetune_jax.data.text import TextPreprocess
from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights
from finetune_jax.pretrained.sources import resolve
from finetune_jax.setup import Setup

MadeOf = dict[str, Any]
"""By part (``data``, ``tokenizer``, ``weights``, ``teacher``) its identity as JSON, an empty object
for a part that the run does not have; and ``versions``, the version of each library by its name."""

PARTS = ("data", "tokenizer", "weights", "teacher")
ACCEPT = "--accept_changed_data"

_LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "tokenizers")
# Number of names in a message.
_SHOWN_CLASSES, _SHOWN_FILES = 8, 3


def made_of(setup: Setup, weights_sha256: str | None) -> MadeOf:
    """The identity of all that a run is made of.

    Args:
      setup: resolved config.
      weights_sha256: SHA-256 of the weight file, see `weight_digest`; None without a weight file.

    Raises:
      UserError: a file of the data, or the artifact of the teacher, cannot be read.
    """
    settings = setup.config.pretrained
    weights: dict[str, Any] = {}
    if weights_sha256:
        weights["sha256"] = weights_sha256
        if settings.class_names:
            weights["class names"] = content_digest(Path(settings.class_names).expanduser())
    return {
        "data": setup.source.identity,
        "tokenizer": _tokenizer(setup),
        "weights": weights,
        "teacher": _teacher(setup.task.teacher) if setup.task.teacher else {},
        "versions": versions(),
    }


def _tokenizer(setup: Setup) -> dict[str, Any]:
    if not isinstance(setup.preprocess, TextPreprocess):
        return {}
    return {"sha256": hashlib.sha256(setup.preprocess.tokenizer.encode()).hexdigest()}


def _teacher(path: str) -> dict[str, Any]:
    folder = Path(path).expanduser()
    folder = folder / "artifact" if (folder / "artifact").is_dir() else folder
    card = files.read_json(folder / "artifact.json")
    # The outputs of the teacher depend on these values, and not on its scores and versions.
    kept = {key: card.get(key) for key in ("fingerprint", "model", "deltas", "task", "preprocess")}
    tokenizer = folder / "tokenizer.json"
    text = content_digest(tokenizer) if tokenizer.is_file() else ""
    return {"sha256": files.digest([kept, text])}


def weight_digest(config: ConfigDict) -> str | None:
    """SHA-256 of ``pretrained.path``, as in the manifest; None for random weights.

    Raises:
      UserError: no such file, or a file that is not readable.
    """
    if not config.pretrained.path:
        return None
    path = resolve(config.pretrained.path)
    with open_weights(path) as weights:
        return weights.sha256()


@functools.lru_cache
def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the libraries that results depend on."""
    found = {"python": sys.version.split()[0], "finetune_jax": finetune_jax.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional library
    return found


def digests(what: Mapping[str, Any]) -> dict[str, str]:
    """16 hex digits of the SHA-256 of each part; "" for a part that the run does not have."""
    return {part: files.digest(what[part])[:16] if what.get(part) else "" for part in PARTS}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for everything in which two `MadeOf` differ, but for versions.

    Parts that one of the two does not know are not compared.
    """
    lines = []
    for part in PARTS:
        if part not in old or part not in new or old[part] == new[part]:
            continue
        if not (isinstance(old[part], dict) and isinstance(new[part], dict)):
            lines.append(f"{part}: {old[part]!s:.40} -> {new[part]!s:.40}")
            continue
        known = part == "data" and _well_formed(old[part]) and _well_formed(new[part])
        found = _data_lines(old[part], new[part]) if known else []
        lines += [f"{part}: {line}" for line in found or _value_lines(old[part], new[part])]
    return lines


def version_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A text such as ``jax 0.4 -> 0.5`` for every library whose version differs."""
    a, b = old.get("versions", {}), new.get("versions", {})
    return [f"{x} {a.get(x)} -> {b.get(x)}" for x in {**a, **b} if a.get(x) != b.get(x)]


def require_same_parts(
    old: Mapping[str, Any], new: Mapping[str, Any], what: str, *, accept: bool
) -> list[str]:
    """Refuses a checkpoint or record that was made from other inputs than the present inputs.

    Args:
      old: `MadeOf` of what was written earlier.
      new: `MadeOf` of what is there now.
      what: name of what was written earlier, for the message.
      accept: whether the user accepts the differences.

    Returns:
      The accepted differences, as `differences`.

    Raises:
      UserError: there are differences, and they are not accepted.
    """
    lines = differences(old, new)
    if lines and not accept:
        raise UserError(
            f"{what} was made from other inputs than the present ones:\n"
            + "\n".join(f"  {line}" for line in lines)
            + f"\nput back what changed, or use another --workdir; {ACCEPT} continues with what "
            f"is there now, and records it"
        )
    return lines


def _well_formed(data: Any) -> bool:
    """Whether an identity of data, which may be read from an edited file, has the right types."""
    if not isinstance(data, dict) or not isinstance(data.get("names", ""), str):
        return False
    classes, splits = data.get("classes", []), data.get("splits", {})
    kinds = [data.get(key, {}) for key in ("content", "tables", "order")]
    return (
        isinstance(classes, list)
        and all(isinstance(x, str) for x in classes)
        and all(isinstance(x, dict) for x in (splits, *kinds))
    )


def _data_lines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    lines = _class_lines(old.get("classes", []), new.get("classes", []))
    a, b = old.get("splits", {}), new.get("splits", {})
    lines += [
        f"{split}: {a.get(split, 0)} -> {b.get(split, 0)} examples"
        for split in {**a, **b}
        if a.get(split) != b.get(split)
    ]
    lines += _name_lines(old, new)
    for key in ("tables", "content"):
        a, b = old.get(key, {}), new.get(key, {})
        changed = [name for name in a if name in b and a[name] != b[name]]
        if changed:
            lines.append(f"the content of {_listed(changed, _SHOWN_FILES)} changed")
    for split, order in old.get("order", {}).items():
        if not lines and order != new.get("order", {}).get(split):
            lines.append(f"the order or the labels of the examples of {split!r} changed")
    if not lines and old.get("list") != new.get("list"):
        lines.append("names or sizes of files changed")
    plain = ("classes", "splits", "tables", "content", "order", "list", "names", "files", "bytes")
    rest = [{k: v for k, v in x.items() if k not in plain} for x in (old, new)]
    return lines + _value_lines(*rest)


def _class_lines(old: Sequence[str], new: Sequence[str]) -> list[str]:
    if old == new:
        return []
    gone = [name for name in old if name not in new]
    come = [name for name in new if name not in old]
    if not gone and not come:
        return [f"the order of the classes: {_listed(old)} -> {_listed(new)}"]
    return [f"classes: {_listed(gone) or 'none'} -> {_listed(come) or 'none'}"]


def _name_lines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    if old.get("list") == new.get("list"):
        return []
    known = "names" in old and "names" in new
    if not known:
        a, b = old.get("files"), new.get("files")
        return [f"{a} -> {b} files"] if a != b else []
    before, after = (collections.Counter(unpack_names(x["names"])) for x in (old, new))
    lines = []
    for word, names in (("removed", before - after), ("added", after - before)):
        if names:
            count = names.total()
            some = _listed([*names], _SHOWN_FILES)
            lines.append(f"{count} {'files' if count > 1 else 'file'} {word}: {some}")
    return lines


def _value_lines(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for every key with another value; digests are cut."""

    def shown(value: Any) -> str:
        text = "none" if value is None else str(value)
        return text[:12] + "…" if len(text) == 64 else text

    return [
        f"{key} {shown(old.get(key))} -> {shown(new.get(key))}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _listed(names: Sequence[str], limit: int = _SHOWN_CLASSES) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")

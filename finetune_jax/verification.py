"""Whether the files of a run, an ablation or a prefix cache are whole.

Everything is checked against the checksums in it, without the data, the weight file and the code of
other packages. Nothing is written, moved or repaired.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_jax import config as config_lib
from finetune_jax import tree
from finetune_jax.ablation.ledger import Ledger
from finetune_jax.artifact.schema import read_card
from finetune_jax.artifact.weights import FILE
from finetune_jax.errors import UserError
from finetune_jax.evaluation.predictions import load_predictions
from finetune_jax.files import parse_json, plain, read_json
from finetune_jax.pretrained import open_weights
from finetune_jax.sealing import signature
from finetune_jax.training import activation_folder
from finetune_jax.training.checkpoint_folder import ASIDE, foreign_in, steps_in
from finetune_jax.training.checkpoint_integrity import damage_of, require_meta
from finetune_jax.training.extending import ASIDE as EXTENDED

OK, DAMAGED, SKIPPED = "ok", "damaged", "skipped"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found about one object.

    Attributes:
      path: the file, or the folder of a checkpoint, an artifact or a cache entry.
      state: ``ok``; ``damaged``; or ``skipped``, for what no run reads or what has no checksum.
      reason: what is damaged, with the file or the leaf, or why the object was skipped.
    """

    path: Path
    state: str
    reason: str = ""


def verify(folder: Path) -> Iterator[Finding]:
    """Checks everything in the folder of a run, an arm, an average or an ablation.

    Raises:
      UserError: the folder holds none of these.
    """
    marks = ("config.json", "artifact", "checkpoints", "metrics.jsonl", "results.jsonl", "runs")
    if not any((folder / mark).exists() for mark in marks):
        raise UserError(f"{folder}: expected the folder of a run or of an ablation, found neither")
    yield from _verify_run(folder)
    if (folder / "results.jsonl").exists():
        yield _finding(folder / "results.jsonl", _check_ledger)
    for unit in sorted(folder.glob("units/*.json")):
        yield _finding(unit, read_json)
    for arm in sorted(path for path in folder.glob("runs/*") if path.is_dir()):
        yield from _verify_run(arm)


def verify_signature(folder: Path, public_key: Path) -> Finding:
    """Checks the signature of a folder; the reason of a good one is by whom.

    Raises:
      UserError: the file of the public key holds none, or the library is not installed.
    """
    path = signature.signed_folder(folder) / signature.FILE
    signer = signature.key_digest(public_key)
    try:
        signature.require_signature(folder, public_key)
    except UserError as error:
        return Finding(path, DAMAGED, str(error))
    return Finding(path, OK, f"signed by the key with the SHA-256 {signer}")


def verify_prefix_cache(folder: Path) -> Iterator[Finding]:
    """Checks every entry of a folder of cached activations.

    Raises:
      UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected the folder of prefix_cache.dir, found none")
    for entry in activation_folder.entries_in(folder):
        reason = activation_folder.damage_of(entry)
        yield Finding(entry, DAMAGED if reason else OK, reason)


def _verify_run(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*.json")):
        yield _finding(path, _check_json)
    if (folder / "metrics.jsonl").exists():
        yield _finding(folder / "metrics.jsonl", _check_metrics)
    yield from _verify_checkpoints(folder)
    if (folder / "artifact").exists():
        yield _verify_artifact(folder / "artifact")
    for path in sorted((folder / EXTENDED).glob("*/artifact")):
        yield _verify_artifact(path)
    for path in sorted(folder.glob("*.npz")):
        yield _finding(path, load_predictions)


def _finding(path: Path, check: Callable[[Path], Any]) -> Finding:
    """The finding of a function that raises UserError for a damaged file."""
    try:
        check(path)
    except UserError as error:
        return Finding(path, DAMAGED, " ".join(str(error).split()))
    except OSError as error:
        return Finding(path, DAMAGED, f"cannot be read: {error.strerror}")
    return Finding(path, OK)


def _verify_checkpoints(folder: Path) -> Iterator[Finding]:
    checkpoints = folder / "checkpoints"
    for step in steps_in(checkpoints):
        path = checkpoints / str(step)
        if reason := damage_of(path):
            yield Finding(path, DAMAGED, reason)
        elif "leaves" not in require_meta(path):
            yield Finding(path, SKIPPED, "written by an older version without checksums")
        else:
            yield Finding(path, OK)
    for path in foreign_in(checkpoints):
        yield Finding(path, SKIPPED, "no checkpoint; a run ignores it")
    if (folder / ASIDE).exists():
        yield Finding(folder / ASIDE, SKIPPED, "set aside by a run; no run reads it")


def _verify_artifact(folder: Path) -> Finding:
    try:
        card = read_card(folder)
        with open_weights(folder / FILE) as weights:
            leaves = {name: weights.read(name) for name in weights.names()}
        # A delta artifact without its base cannot be compared with the fingerprint of all leaves.
        whole = card["contents"] == "all"
        key = "fingerprint" if whole else "own_fingerprint"
        if key not in card:
            return Finding(folder, SKIPPED, f"artifact.json has no {key}")
        # A model without statistics has no leaf of them, and an empty dict has no leaf path.
        if tree.fingerprint(tree.unflatten(leaves)) != card[key]:
            raise UserError(f"{FILE}: the leaves do not have the fingerprint of artifact.json")
        _compare_with_card(folder.parent, card)
    except UserError as error:
        return Finding(folder, DAMAGED, " ".join(str(error).split()))
    except (OSError, KeyError, ValueError) as error:
        return Finding(folder, DAMAGED, f"cannot be read: {error}")
    return Finding(folder, OK)


def _compare_with_card(folder: Path, card: dict[str, Any]) -> None:
    """Compares the files beside an artifact, which have no checksums, with its card.

    Raises:
      UserError: a number or a hash differs.
    """
    result = folder / "result.json"
    if result.is_file():
        scores = read_json(result)
        for split, expected in plain(card["scores"]).items():
            if scores.get(split) != expected:
                raise UserError(f"{result}: other scores of {split} than in artifact.json")
    plan = folder / "plan.json"
    if plan.is_file() and read_json(plan).get("hash") != card["plan"].get("hash"):
        raise UserError(f"{plan}: another plan than in artifact.json")
    manifest = folder / "manifest.json"
    if manifest.is_file() and read_json(manifest).get("sha256") != card["base"].get("sha256"):
        raise UserError(f"{manifest}: another weight file than in artifact.json")


def _check_json(path: Path) -> None:
    content = read_json(path)
    if path.name != "config.json":
        return
    try:
        config_lib.validate(config_lib.from_json(content))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a config: {error}") from None


def _check_metrics(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = parse_json(line.decode())
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"line {number}: {error}") from None
        if not (isinstance(row, dict) and isinstance(row.get("step"), int) and "split" in row):
            raise UserError(f"line {number}: expected an object with step and split")
    if lines[-1]:
        raise UserError(f"line {len(lines)}: incomplete; a run that continues removes it")


def _check_ledger(path: Path) -> None:
    # A copy is read, because a ledger repairs its file when it is opened.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        content = path.read_bytes()
        copy.write_bytes(content)
        try:
            Ledger(copy)
        except UserError as error:
            raise UserError(str(error).replace(str(copy), str(path))) from None
        if copy.read_bytes() != content:
            raise UserError("the last line is incomplete; the next ablation in the folder mends it")

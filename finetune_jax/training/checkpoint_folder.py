"""The folder of a run's checkpoints: finds damaged checkpoints and moves them away."""

from __future__ import annotations

import os
import re
from pathlib import Path

import jax

from finetune_jax.errors import UserError
from finetune_jax.hosts import all_agree, is_primary, require_same, wait
from finetune_jax.progress import say
from finetune_jax.training.checkpoint_integrity import (
    ITEMS,
    damage_of,
    repair_metrics,
    require_meta,
)

ASIDE = "damaged_checkpoints"
"""Folder beside ``checkpoints/`` for damaged checkpoints; no run reads or removes its content."""

_STEP = re.compile(r"0|[1-9]\d*")
_UNFINISHED = ".orbax-checkpoint-tmp"


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder in ascending order, damaged or not."""
    return sorted(int(path.name) for path in _entries(folder) if _is_checkpoint(path))


def foreign_in(folder: Path) -> list[Path]:
    """Returns what else is in a folder of checkpoints, without unfinished checkpoints."""
    others = (path for path in _entries(folder) if not _is_checkpoint(path))
    return [path for path in others if _UNFINISHED not in path.name]


def set_damaged_aside(folder: Path) -> None:
    """Leaves a folder with its newest checkpoint whole, and says what was wrong.

    Damaged checkpoints that are newer than the newest whole checkpoint are moved to the folder
    `ASIDE`. An entry that has the name of a step and is no checkpoint is moved too, because Orbax
    would take it for the newest step; other entries stay. All processes must call this function.

    Args:
      folder: folder of the checkpoints; need not exist.

    Raises:
      UserError: there are checkpoints and all are damaged, or a damaged one cannot be moved. No
        checkpoint is moved then.
    """
    wait("checkpoints are listed")
    steps, foreign = steps_in(folder), foreign_in(folder)
    require_same({"checkpoints": steps, "files beside the checkpoints": foreign})
    if is_primary():
        _repair_metrics(folder, steps)
    wait("scores are repaired")
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        reason = damage_of(folder / str(step), jax.process_index(), jax.process_count())
        if all_agree(not reason):
            _say_if_unverified(folder / str(step))
            break
        damaged[step] = reason or "another process found the damage"
    if steps and len(damaged) == len(steps):
        raise UserError(
            f"{folder}: no checkpoint is whole ({_listed(damaged)}); to train from the start, "
            f"remove this folder or use another --workdir"
        )
    for path in foreign:
        is_step = _STEP.fullmatch(path.name) is not None
        place = f", moved to {_move_aside(path)}" if is_step else ""
        say(f"{path}: no checkpoint, ignored{place}")
    for step, reason in damaged.items():
        aside = _move_aside(folder / str(step))
        say(f"checkpoint at step {step} is damaged, moved to {aside}: {reason}")
    wait("damaged checkpoints are aside")


def _repair_metrics(folder: Path, steps: list[int]) -> None:
    for step in steps:
        try:
            if repair_metrics(folder / str(step)):
                say(f"checkpoint at step {step}: its scores were damaged, and are written anew")
        except UserError:
            continue  # the damage is found again when the checkpoint is verified or restored
        except OSError as error:
            raise UserError(f"{folder / str(step)}: cannot write: {error.strerror}") from None


def _listed(damaged: dict[int, str]) -> str:
    return "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())


def _say_if_unverified(folder: Path) -> None:
    if "leaves" not in require_meta(folder):
        say(f"{folder}: written by an older version without checksums; it cannot be verified")


def _move_aside(path: Path) -> Path:
    """Moves an entry of a folder of checkpoints, on the primary; returns its new place."""
    parent = path.parent.parent / ASIDE
    place, number = parent / path.name, 1
    while os.path.lexists(place):
        number += 1
        place = parent / f"{path.name}-{number}"
    if is_primary():
        try:
            parent.mkdir(exist_ok=True)
            path.rename(place)
        except OSError as error:
            raise UserError(f"{path}: cannot be moved to {place}: {error.strerror}") from None
    return place


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    named = _STEP.fullmatch(path.name) is not None
    return named and any((path / item).exists() for item in ITEMS)

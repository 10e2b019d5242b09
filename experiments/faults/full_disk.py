"""Campaign: the disk of a run becomes full, limited or absent at a random moment.

  python -m experiments.faults.full_disk --write

The run must end with one message. After the fault is removed, the same call must end with the bits
of a run without a fault. Full file systems need the right to mount a tmpfs; without this right only
the other kinds of faults are tried.
"""

from __future__ import annotations

import atexit
import contextlib
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.faults.campaign import IDENTICAL, REFUSED, WRONG, Trial, main, outcome_of
from experiments.faults.training import tiny_config
from finetune_jax.files import read_json
from finetune_jax.setup import Setup, open_setup
from finetune_jax.training.loop import train

_PAGE = 4096


def writing_config() -> ConfigDict:
    """The config of a run of 6 steps on digits that writes much for its size."""
    config = tiny_config()
    config.scheme = "full"
    config.train.steps = 6
    config.log.tensorboard = True
    return config


def make_trial(folder: Path, kinds: tuple[str, ...] = ()) -> Trial:
    """Trains the run without a fault.

    Args:
      folder: empty folder for all runs.
      kinds: kinds of faults, which are tried equally often; by default all that are possible here.

    Returns:
      The function of a trial.
    """
    setup = open_setup(writing_config())
    train(setup, folder / "whole")
    expected = _end(folder / "whole")
    files = [path for path in (folder / "whole").rglob("*") if path.is_file()]
    largest = max(path.stat().st_size for path in files)
    pages = sum(-(-path.stat().st_size // _PAGE) for path in files)
    kinds = kinds or ("space", "inodes", "file size", "removed")
    if not can_mount(folder):
        kinds = tuple(kind for kind in kinds if kind not in ("space", "inodes"))

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        place = folder / "trial"
        place.mkdir()
        kind = str(rng.choice(kinds))
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, place)
            if kind == "space":
                fault: Any = _mounted(place, f"size={int(rng.integers(8, pages)) * _PAGE}")
            elif kind == "inodes":
                fault = _mounted(place, f"nr_inodes={int(rng.integers(8, 3 * len(files)))}")
            elif kind == "file size":
                fault = _file_size(int(rng.integers(256, largest)))
            else:
                fault = contextlib.nullcontext("folder removed")
            removed_at = int(rng.integers(1, 7)) if kind == "removed" else None
            return _outcome(setup, place, undo, fault, removed_at, expected)

    return trial


def _outcome(
    setup: Setup,
    place: Path,
    undo: contextlib.ExitStack,
    fault: contextlib.AbstractContextManager[str],
    removed_at: int | None,
    expected: tuple[Any, ...],
) -> tuple[str, str]:
    """Trains under a fault and again without it; returns the outcome of a trial."""
    workdir = place / "run"

    def remove(step: int, split: str, _: dict[str, Any]) -> None:
        if step == removed_at and split == "train":
            # Renamed first, because a rename takes effect at once and a removal does not.
            workdir.rename(place / "removed")
            shutil.rmtree(place / "removed", ignore_errors=True)

    def attempt() -> bool:
        train(setup, workdir, remove)
        return same()

    def same() -> bool:
        # Metrics that were removed with the folder stay removed.
        kept = slice(3) if removed_at else slice(None)
        return _end(workdir)[kept] == expected[kept]

    with contextlib.ExitStack() as active:
        done = active.enter_context(fault)
        undo.push(active.pop_all())  # the mount stays for the second training
        outcome, message = outcome_of(attempt)
    done += f", step {removed_at}" if removed_at else ""
    if outcome not in (REFUSED, IDENTICAL) or "\n" in message:
        return (outcome if outcome != REFUSED else WRONG), f"{done}: {message}"
    _mend(place)
    again, text = outcome_of(lambda: bool(train(setup, workdir)) and same())
    recovered = IDENTICAL if again == IDENTICAL else WRONG if again == REFUSED else again
    return recovered, f"{done}: {message}; then: {text or again}"


def _end(workdir: Path) -> tuple[Any, ...]:
    """The results of a finished run that must not depend on the time of a fault."""
    result = read_json(workdir / "result.json")
    weights = (workdir / "artifact" / "model.safetensors").read_bytes()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return weights, result["test"], result["validation"], len(lines)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    place = folder / "mount"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "tmpfs", str(place)]
    try:
        allowed = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        allowed = False
    if allowed:
        subprocess.run(["umount", str(place)], check=True)
    place.rmdir()
    return allowed


@contextlib.contextmanager
def _mounted(place: Path, option: str) -> Iterator[str]:
    """A tmpfs with a limit, at a place until the context ends."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)], check=True)
    try:
        yield option
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mend(place: Path) -> None:
    """Removes the fault."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if place.is_mount():
        command = ["mount", "-o", "remount,size=1g,nr_inodes=0", str(place)]
        subprocess.run(command, check=True)


@contextlib.contextmanager
def _file_size(limit: int) -> Iterator[str]:
    """A limit on the size of each file that this process writes, until `_mend`."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield f"files of at most {limit} bytes"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _prepare() -> Trial:
    folder = Path(tempfile.mkdtemp(prefix="full_disk_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_trial(folder)


if __name__ == "__main__":
    main("full_disk", _prepare, trials=20)

"""Shared code of the campaigns: random damage to files, kinds of outcomes, and their counts.

Trials are numbered. The random choices of a trial depend on the seed of the campaign and on the
number of the trial alone, so that ``--only=17`` repeats trial 17.
"""

from __future__ import annotations

import collections
import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.files import write_json
from finetune_jax.progress import each, muted

RESULTS = Path(__file__).parent.parent / "results" / "faults"

IDENTICAL = "identical"  # the result has the same bits as the result without the fault
REFUSED = "refused"  # one readable message, and no result
WRONG = "silently wrong"  # a result that differs, with status 0
TRACEBACK = "traceback"
HANG = "hang"
OUTCOMES = (IDENTICAL, REFUSED, WRONG, TRACEBACK, HANG)

_EVERY = 5
_TRACEBACKS = "FAULTS_TRACEBACKS"
"""Variable of the environment with which `outcome_of` prints a traceback."""

Trial = Callable[[np.random.Generator], tuple[str, str]]
"""Function of random numbers to (one of `OUTCOMES`, what was done and what was seen)."""


def damage(file: Path, rng: np.random.Generator) -> str:
    """Damages a file at random, and returns what was done.

    A bit is flipped, a range is zeroed or overwritten, or the file is cut, extended, emptied,
    removed or replaced by a folder.
    """
    content = bytearray(file.read_bytes())
    size = len(content)
    kind = rng.choice(["flip", "zero", "noise", "cut", "extend", "empty", "remove", "folder"],
                      p=[0.4, 0.1, 0.15, 0.15, 0.05, 0.05, 0.05, 0.05])  # fmt: skip
    if not size and kind in ("flip", "zero", "noise", "cut"):
        kind = "extend"
    start = int(rng.integers(size)) if size else 0
    stop = min(size, start + int(rng.integers(1, 65)))
    if kind == "flip":
        bit = int(rng.integers(8))
        content[start] ^= 1 << bit
        done = f"bit {bit} of byte {start} of {size} flipped"
    elif kind == "zero":
        content[start:stop] = bytes(stop - start)
        done = f"bytes {start} to {stop} of {size} zeroed"
    elif kind == "noise":
        content[start:stop] = rng.bytes(stop - start)
        done = f"bytes {start} to {stop} of {size} overwritten"
    elif kind == "cut":
        del content[start:]
        done = f"cut at byte {start} of {size}"
    elif kind == "extend":
        content += rng.bytes(int(rng.integers(1, 65)))
        done = f"{len(content) - size} bytes appended to {size}"
    elif kind == "empty":
        content.clear()
        done = f"emptied, {size} bytes before"
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        return f"{file.name}: {'removed' if kind == 'remove' else 'replaced by a folder'}"
    file.write_bytes(content)
    return f"{file.name}: {done}"


def damage_one(folder: Path, rng: np.random.Generator) -> str:
    """Damages one file under a folder, chosen at random, and returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[int(rng.integers(len(files)))]
    return f"{file.parent.relative_to(folder)}/{damage(file, rng)}"


def outcome_of(call: Callable[[], bool]) -> tuple[str, str]:
    """Calls a function that returns whether its result is right; returns (outcome, message)."""
    try:
        right = call()
    except UserError as error:
        return REFUSED, str(error)
    except Exception as error:  # noqa: BLE001  every other error counts as a traceback
        if _TRACEBACKS in os.environ:
            traceback.print_exc()
        return TRACEBACK, f"{type(error).__name__}: {error}"
    return (IDENTICAL if right else WRONG), ""


def run_campaign(name: str, trial: Trial, trials: int, seed: int) -> dict[str, Any]:
    """Runs the trials, prints every bad one, and returns the counts.

    Args:
      name: name of the campaign.
      trial: see `Trial`.
      trials: number of trials.
      seed: seed of the campaign.
    """
    counts: collections.Counter[str] = collections.Counter()
    bad, began = [], time.monotonic()
    for number in each(range(trials), name):
        with muted():
            outcome, what = trial(np.random.default_rng([seed, number]))
        counts[outcome] += 1
        if outcome in (WRONG, TRACEBACK, HANG):
            bad.append({"trial": number, "outcome": outcome, "what": what})
            print(f"{name}, trial {number}: {outcome}: {what}", flush=True)
        if (number + 1) % _EVERY == 0:  # shows the counts of a campaign that is ended early
            print(f"{name}, {number + 1} of {trials} trials: {dict(counts)}", flush=True)
    return {
        "campaign": name,
        "seed": seed,
        "trials": trials,
        # A campaign may have an outcome of its own, such as another valid result.
        "counts": {outcome: counts[outcome] for outcome in dict.fromkeys([*OUTCOMES, *counts])},
        "bad": bad,
        "seconds": round(time.monotonic() - began),
    }


def main(name: str | Callable[[], str], make_trial: Callable[[], Trial], trials: int) -> None:
    """Runs a campaign as a command; ends with status 1 if a trial was bad.

    Args:
      name: name of the campaign, or a function that returns the name once the flags are read.
      make_trial: prepares the campaign, and returns the function of a trial.
      trials: number of trials without ``--trials``.
    """

    # Not at import, where the flags of other commands of a test would have the same names.
    only = flags.DEFINE_integer("only", None, "Runs this trial alone, and prints its traceback.")
    count = flags.DEFINE_integer("trials", trials, "Number of trials.", lower_bound=1)
    seed = flags.DEFINE_integer("seed", 0, "Seed of the campaign.")
    write = flags.DEFINE_bool("write", False, "Writes the counts to experiments/results/faults/.")

    def command(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {argv[1:]}")
        trial = make_trial()
        if only.value is not None:
            os.environ[_TRACEBACKS] = "1"
            print(*trial(np.random.default_rng([seed.value, only.value])), sep=": ")
            return
        title = name if isinstance(name, str) else name()
        report = run_campaign(title, trial, count.value, seed.value)
        print(json.dumps({key: report[key] for key in report if key != "bad"}))
        if write.value:
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_json(RESULTS / f"{title}.json", report)
        if report["bad"]:
            raise SystemExit(1)

    cli.run(command)

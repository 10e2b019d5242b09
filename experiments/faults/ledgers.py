"""Campaign: the ledger of a finished ablation is damaged, and the ablation is called again.

A trial changes ``results.jsonl``: random damage of the file, or an edit of its lines. The ablation
is then continued in this process, with a launcher that runs nothing: the results of its arms are in
their folders. The outcome is right if the tables are those of the undamaged ledger.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments.faults import campaign
from finetune_jax.ablation.axes import over
from finetune_jax.ablation.conduct import Conductor
from finetune_jax.ablation.launch.base import Poll
from finetune_jax.ablation.outcome import Outcome
from finetune_jax.ablation.report.write import terminal_tables
from finetune_jax.ablation.study import Study
from finetune_jax.ablation.worker import run_unit
from finetune_jax.config import default
from finetune_jax.files import SEAL, seal

TRIALS = 100


def study() -> Study:
    """Two schemes, tuned over two learning rates, with two seeds."""
    return Study(
        rows=over("scheme", ["linear_probe", "last_k(1)"]),
        tune=over("optimizer.learning_rate", [0.01, 0.1]),
        search="grid(extend=0)",
        seeds=(0, 1),
    )


def config() -> ml_collections.ConfigDict:
    """Runs of two steps on the digits, from random weights."""
    config = default()
    config.data.train, config.data.validation = "train[:32]", "validation[:32]"
    config.data.test = "test[:32]"
    config.data.image_size = 16
    config.train.batch_size = config.eval.batch_size = 16
    config.train.steps = 2
    config.log.tensorboard = False
    return config


class _InProcess:
    """A launcher of this process."""

    def run(self, units: Sequence[Path], poll: Poll) -> None:
        for unit in units:
            run_unit(unit, poll)


def outcome_in(folder: Path) -> Outcome:
    """Runs or continues the ablation in a folder."""
    return Conductor(study(), config(), folder, _InProcess()).run({})


def _edit_number(lines: list[bytes], rng: np.random.Generator) -> str:
    number = int(rng.integers(len(lines)))
    record = json.loads(lines[number])
    scores = record.get("test") or record["validation"]
    scores["accuracy"] = float(rng.random())
    lines[number] = json.dumps(record).encode()
    return f"accuracy of line {number + 1} edited"


def _edit_and_strip(lines: list[bytes], rng: np.random.Generator) -> str:
    number = int(rng.integers(len(lines)))
    record = json.loads(lines[number])
    scores = record.get("test") or record["validation"]
    scores["accuracy"] = float(rng.random())
    record.pop(SEAL, None)
    lines[number] = json.dumps(record).encode()
    return f"accuracy of line {number + 1} edited, and its checksum removed"


def _swap_keys(lines: list[bytes], rng: np.random.Generator) -> str:
    a, b = (int(i) for i in rng.choice(len(lines), 2, replace=False))
    first, second = json.loads(lines[a]), json.loads(lines[b])
    first["key"], second["key"] = second["key"], first["key"]
    lines[a], lines[b] = json.dumps(first).encode(), json.dumps(second).encode()
    return f"keys of lines {a + 1} and {b + 1} swapped"


def _other_type(lines: list[bytes], rng: np.random.Generator) -> str:
    """A record with a value of a wrong type and a valid checksum, as a faulty program writes it."""
    number = int(rng.integers(len(lines)))
    record = json.loads(lines[number])
    record.pop(SEAL, None)
    key = sorted(record)[int(rng.integers(len(record)))]
    value = [None, [], {}, "text", 3, True][int(rng.integers(6))]
    if key in ("point", "others", "asked", "config", "made_of", "row", "seed", "share", "steps"):
        value = None  # values of the right type can be valid
    record[key] = value if type(value) is not type(record[key]) else None
    lines[number] = json.dumps(seal(record)).encode()
    return f"{key} of line {number + 1} is {value!r}, sealed"


def _remove(lines: list[bytes], rng: np.random.Generator) -> str:
    number = int(rng.integers(len(lines)))
    del lines[number]
    return f"line {number + 1} removed"


def _repeat(lines: list[bytes], rng: np.random.Generator) -> str:
    number = int(rng.integers(len(lines)))
    lines.append(lines[number])
    return f"line {number + 1} repeated"


def _shuffle(lines: list[bytes], rng: np.random.Generator) -> str:
    rng.shuffle(lines)  # type: ignore[arg-type]  # a list is shuffled in place
    return "lines in another order"


def _insert(lines: list[bytes], rng: np.random.Generator) -> str:
    number = int(rng.integers(len(lines)))
    line = [b"", bytes(100), rng.bytes(80).replace(b"\n", b" "), b"{}", b"null"]
    kind = int(rng.integers(len(line)))
    lines.insert(number, line[kind])
    return f"line of kind {kind} inserted before line {number + 1}"


EDITS: tuple[Callable[[list[bytes], np.random.Generator], str], ...] = (
    _edit_number, _edit_and_strip, _swap_keys, _other_type, _remove, _repeat, _shuffle, _insert,
)  # fmt: skip


def mutate(ledger: Path, rng: np.random.Generator) -> str:
    """Changes a ledger; half of the changes are damage of the file, half are edits of lines."""
    if rng.random() < 0.5:
        return campaign.damage(ledger, rng)
    lines = ledger.read_bytes().splitlines()
    done = EDITS[int(rng.integers(len(EDITS)))](lines, rng)
    ledger.write_bytes(b"\n".join(lines) + b"\n")
    return done


def make_trial() -> campaign.Trial:
    """Runs the ablation once; returns the trial."""
    folder = Path(tempfile.mkdtemp(prefix="ledgers_"))
    whole = folder / "whole"
    expected = _answer(outcome_in(whole))

    def trial(rng: np.random.Generator) -> tuple[str, str]:
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        done = mutate(copy / "results.jsonl", rng)
        outcome, message = campaign.outcome_of(lambda: _answer(outcome_in(copy)) == expected)
        return outcome, f"{done}: {message}"

    return trial


def _answer(outcome: Outcome) -> list[Any]:
    """The tables and rows of an outcome, without the places of files."""
    rows = [dataclasses.replace(row, predictions={}) for row in outcome.rows]
    return [terminal_tables(outcome), rows]


if __name__ == "__main__":
    campaign.main("ledgers", make_trial, TRIALS)

"""Synthetic outcomes: no run is trained, but the files of predictions are real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.ablation.outcome import Outcome, RunCost, TableRow
from finetune_jax.ablation.search.base import Trial
from finetune_jax.ablation.study import RowSpec
from finetune_jax.evaluation.predictions import Predictions, save_predictions
from finetune_jax.tasks import Task
from finetune_jax.tasks.classification import Classification
from finetune_jax.tasks.ordinal import Ordinal
from finetune_jax.tasks.regression import Regression

# Characters that Markdown, LaTeX, HTML or a terminal could interpret.
HOSTILE = "a|b_c*d*`e`<script>f</script>[g](h)&amp;~i~ \\ {j}$k$#%^'\"--\n\tl"
RATE = "optimizer.learning_rate"
TRIALS = tuple(Trial({RATE: rate}, 1.0, value) for rate, value in [(0.01, 0.5), (0.1, 0.8)])


def cost(trainable: int, step_flops: float, total: int = 10_000_000) -> RunCost:
    """The cost of a row; attributes that are not arguments follow from the arguments."""
    return RunCost(
        trainable, total, step_flops, 60 * step_flops, 8 * trainable + 1_000_000, 4 * trainable,
        8 * trainable, 12.5,
    )  # fmt: skip


COST = cost(1000, 1e9)


def classified(right: np.ndarray) -> tuple[Task, dict[str, np.ndarray]]:
    """Observations of a classifier; `right`, bool[n], says which predictions are correct."""
    label = np.arange(len(right)) % 3
    predicted = np.where(right, label, (label + 1) % 3)
    logits = 4.0 * np.eye(3, dtype=np.float32)[predicted]
    observed = {
        "logits": logits,
        "label": label,
        "accuracy": right.astype(np.float32),
        "loss": np.where(right, 0.04, 4.04).astype(np.float32),
    }
    return Classification(("a", "b", "c")), observed


def regressed(error: np.ndarray) -> tuple[Task, dict[str, np.ndarray]]:
    """Observations of a regression with these errors, f[n]."""
    label = np.linspace(0, 10, len(error)).astype(np.float32)
    observed = {"predicted": label + error, "label": label, "loss": error**2, "error": abs(error)}
    return Regression(), observed


def ordered(predicted: np.ndarray, label: np.ndarray) -> tuple[Task, dict[str, np.ndarray]]:
    """Observations of an ordinal classifier with five classes; both arguments are i[n]."""
    error = np.abs(predicted - label).astype(np.float32)
    observed = {"predicted": predicted, "label": label, "error": error, "loss": error}
    return Ordinal(("1", "2", "3", "4", "5")), observed


def make_row(
    folder: Path,
    label: str,
    runs: Mapping[int, tuple[Task, dict[str, np.ndarray]]],
    *,
    cost: RunCost | None = COST,
    table: str = "",
    overrides: Mapping[str, Any] | None = None,
    trials: Sequence[Trial] = TRIALS,
    budget: float = 2.0,
    edges: Sequence[str] = (),
    others: Mapping[str, Mapping[int, Any]] | None = None,
    errors: Mapping[int, str] | None = None,
    failed: bool = False,
    first_example: int = 0,
) -> TableRow:
    """A row with scored runs; `runs` has the task and the observations of each seed."""
    name = f"{table}: {label}" if table else label
    test, predictions = {}, {}
    for seed, (task, observed) in runs.items():
        example = first_example + np.arange(len(observed["loss"]), dtype=np.uint64)
        kept = Predictions(task, observed, example, {"split": "test"})
        predictions[seed] = folder / f"{abs(hash((name, seed)))}.npz"
        save_predictions(predictions[seed], kept)
        test[seed] = kept.scores()
    best = max(trials, key=lambda t: -np.inf if t.value is None else t.value)
    return TableRow(
        spec=RowSpec(name, label, table, dict(overrides or {"scheme": label}), ({},)),
        point=None if failed else best.point,
        edges=tuple(edges),
        trials=tuple(trials),
        budget=budget,
        validation=test,
        test=test,
        others={k: dict(v) for k, v in (others or {}).items()},
        predictions=predictions,
        cost=None if failed else cost,
        errors=dict(errors or {}),
    )


def make_outcome(rows: Sequence[TableRow], metric: str = "accuracy", **changes: Any) -> Outcome:
    """An outcome with these rows."""
    values: dict[str, Any] = {
        "better": "max",
        "reference": "",
        "seeds": (0, 1, 2),
        "tuning_seeds": 1,
        "provenance": {
            "config": "configs/synthetic.py",
            "config_hash": "0123456789abcdef",
            "command": "python -m finetune_jax.ablate --config=configs/synthetic.py --workdir=DIR",
            "versions": {"jax": "0.10.0", "numpy": "2.3.0"},
            "seconds": 61.0,
        },
    }
    return Outcome(tuple(rows), metric, **values | changes)


def rights(share: float, n: int = 200, seeds: Sequence[int] = (0, 1, 2), start: int = 0) -> Any:
    """Runs of a classifier that is right on about this share of examples, which differ by seed."""
    return {
        seed: classified(np.random.default_rng(start + seed).random(n) < share) for seed in seeds
    }

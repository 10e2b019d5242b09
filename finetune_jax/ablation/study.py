"""What an ablation compares, how each line of its table is tuned, and on what it is scored.

A config file of an ablation has ``get_config()``, the base, and ``get_study()``:

    def get_study():
        return Study(
            rows=over("scheme", ["linear_probe", "last_k(2)", "full"]),
            tune=over("optimizer.learning_rate", [0.01, 0.03, 0.1, 0.3]),
            seeds=(0, 1, 2, 3, 4),
        )
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import ml_collections

from finetune_jax.ablation.arm import overridden
from finetune_jax.ablation.axes import Overrides
from finetune_jax.cli import call_config_file
from finetune_jax.errors import UserError, nearest

Points = Iterable[Overrides] | Callable[[Overrides], Iterable[Overrides]]


@dataclasses.dataclass(frozen=True)
class Study:
    """An ablation.

    Attributes:
      rows: overrides of each line of a table: schemes, data sets, policies. Lines with other data
        go into a table of their own.
      tune: points of hyper-parameters to try for every row, chosen on validation; or a function of
        a row's overrides that gives them, for keys of its own. Every row gets as many.
      seeds: of the chosen point of each row, whose scores count.
      tune_seeds: over which a point's validation score is averaged.
      search: ``grid``, ``grid(extend=1)``, ``halving(factor=3, rungs=3)`` or ``optuna(trials=20)``;
        see `search`.
      reference: name of the row that the others are compared with; empty takes the first of each
        table.
      control: adds to every scheme the same number of trainable scalars at random places.
      corruptions: scored on the chosen arms beside the test split, as evaluate's flag.
      severity: of the corruptions, as evaluate's flag.
      shifts: shifted test sets, as evaluate's flag.
      drift: whether to measure how far the chosen arms' features moved from the base.
    """

    rows: Iterable[Overrides]
    tune: Points = ()
    seeds: Sequence[int] = (0, 1, 2)
    tune_seeds: Sequence[int] = (0,)
    search: str = "grid"
    reference: str = ""
    control: bool = False
    corruptions: str = ""
    severity: str = "5"
    shifts: str = ""
    drift: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a study with its names resolved.

    Attributes:
      name: unique.
      label: what tells it from the others of its table.
      table: what tells its table from others; empty if there is one.
      overrides: of the base config.
      points: to try, in order; one empty point where nothing is tuned.
    """

    name: str
    label: str
    table: str
    overrides: Overrides
    points: tuple[Overrides, ...]


def lines_of(study: Study, base: ml_collections.ConfigDict) -> list[Line]:
    """The rows of a study, checked against the config's keys.

    Raises:
      UserError: two equal rows, rows with different numbers of points, unknown keys or reference.
    """
    rows = [dict(row) for row in study.rows]
    if not rows:
        raise UserError("rows: expected at least one, found none")
    if study.control:
        rows += [
            {**row, "scheme": f"random_mask({str(row['scheme'])!r})"}
            for row in rows
            if isinstance(row.get("scheme"), str) and _has_body(row["scheme"])
        ]
    for row in rows:
        overridden(base, row)  # says what is no key
    # What is asked and of what: a table compares answers to one question.
    asked = [{k: v for k, v in row.items() if k.split(".")[0] in ("data", "task")} for row in rows]
    tables = _short_names(asked)
    lines = []
    for row, question, table in zip(rows, asked, tables, strict=True):
        label = _name({k: v for k, v in row.items() if k not in question}) or "base"
        lines.append(
            Line(
                name=f"{table}: {label}" if table else label,
                label=label,
                table=table,
                overrides=row,
                points=_points(study.tune, row),
            )
        )
    names = [line.name for line in lines]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"rows: expected different ones, found twice: {', '.join(twice)}")
    counts = {line.name: len(line.points) for line in lines}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise UserError(f"tune: expected as many points for every row, found {found}")
    labels = dict.fromkeys(line.label for line in lines)
    if study.reference and study.reference not in labels:
        raise UserError(f"reference: no row {study.reference!r}.{nearest(study.reference, labels)}")
    for part in ("seeds", "tune_seeds"):
        seeds = list(getattr(study, part))
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"{part}: expected different whole numbers, found {seeds}")
    return lines


def load_study(path: str) -> Study:
    """What ``get_study`` of a config file returns.

    Raises:
      UserError: it has none, or returns something else.
    """
    study = call_config_file(path, "get_study")
    if not isinstance(study, Study):
        raise UserError(
            f"{path}: get_study() must return a finetune_jax.ablation.study.Study, found "
            f"{type(study).__name__}"
        )
    return study


def _points(tune: Points, row: Overrides) -> tuple[Overrides, ...]:
    given = tune(row) if callable(tune) else tune
    return tuple(dict(point) for point in given) or ({},)


def _name(overrides: Overrides) -> str:
    """A scheme by its text; other keys as ``last_part=value``."""
    parts = [str(v) for k, v in overrides.items() if k == "scheme"]
    parts += [f"{k.rpartition('.')[2]}={v}" for k, v in overrides.items() if k != "scheme"]
    return ", ".join(parts)


def _short_names(asked: Sequence[Overrides]) -> list[str]:
    """Names of questions: by the source alone where that tells them apart."""
    whole = [_name(question) for question in asked]
    sources = [str(question.get("data.source", "")) for question in asked]
    return sources if len(set(zip(sources, whole, strict=True))) == len(set(sources)) else whole


def _has_body(scheme: str) -> bool:
    """Whether a random mask can stand in: phases and bare heads have no such control."""
    programs = ("lp_ft", "gradual", "chain_thaw", "fine_tune", "random_mask")
    whole = scheme.strip()
    if ">>" in whole or whole.startswith(programs):
        return False
    return whole not in ("linear_probe", "head", "full")

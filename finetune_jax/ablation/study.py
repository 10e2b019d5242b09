"""A study: what an ablation compares, how each row is tuned, and how each row is scored.

A config file of an ablation has ``get_config()``, which returns the base config, and
``get_study()``:

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
from typing import Any

import ml_collections

from finetune_jax.ablation.arm import apply_overrides
from finetune_jax.ablation.axes import Overrides
from finetune_jax.errors import UserError, nearest

Points = Iterable[Overrides] | Callable[[Overrides], Iterable[Overrides]]


@dataclasses.dataclass(frozen=True)
class Study:
    """What an ablation compares.

    Attributes:
      rows: overrides of each row: schemes, data sets, policies. Rows with different data or tasks
        are in different tables.
      tune: points of hyper-parameters to try for every row; the best point is chosen on validation.
        A function of the overrides of a row may return points with other keys for each row. Every
        row must have the same number of points.
      seeds: seeds of the scored runs of each row.
      tune_seeds: seeds over which the validation score of a point is averaged.
      search: ``grid``, ``grid(extend=1)``, ``halving(factor=3, rungs=3)`` or ``optuna(trials=20)``;
        see `ablation.search`.
      reference: label of the row that the other rows are compared with; if empty, the first row of
        each table.
      control: whether to add a control row for each scheme, which trains the same number of scalars
        at random places.
      corruptions: corruptions to score the chosen arms on, in the format of evaluate's flag.
      severity: severity of the corruptions, in the format of evaluate's flag.
      shifts: shifted test sets to score the chosen arms on, in the format of evaluate's flag.
      drift: whether to measure how far the features of the chosen arms are from those of the
        pretrained model.
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
class RowSpec:
    """A row of a study with its names.

    Attributes:
      name: name of the row, unique in the study.
      label: name of the row within its table.
      table: name of the table; empty if the study has only one table.
      overrides: overrides of the base config.
      points: points to try, in order; a single empty point if nothing is tuned.
    """

    name: str
    label: str
    table: str
    overrides: Overrides
    points: tuple[Overrides, ...]


def row_specs(study: Study, base: ml_collections.ConfigDict) -> list[RowSpec]:
    """The rows of a study, after checks.

    Args:
      study: the study.
      base: config that the rows override.

    Raises:
      UserError: two equal rows, rows with different numbers of points, an unknown config key or
        reference, or no seeds or repeated seeds.
    """
    rows = [dict(row) for row in study.rows]
    if not rows:
        raise UserError("rows: expected at least one, found none")
    if study.control:
        rows += [
            {**row, "scheme": f"random_mask({str(row['scheme'])!r})"}
            for row in rows
            if isinstance(row.get("scheme"), str) and _has_control(row["scheme"])
        ]
    for row in rows:
        apply_overrides(base, row)  # raises for an unknown key
    # Only rows with the same data and task can be compared, so these overrides name the table.
    data = [{k: v for k, v in row.items() if k.split(".")[0] in ("data", "task")} for row in rows]
    specs = []
    for row, of_data, table in zip(rows, data, _table_names(data), strict=True):
        label = _name({k: v for k, v in row.items() if k not in of_data}) or "base"
        specs.append(
            RowSpec(
                name=f"{table}: {label}" if table else label,
                label=label,
                table=table,
                overrides=row,
                points=_points(study.tune, row),
            )
        )
    _check_rows(specs, study)
    return specs


def _check_rows(specs: Sequence[RowSpec], study: Study) -> None:
    names = [spec.name for spec in specs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"rows: expected different rows, found twice: {', '.join(repeated)}")
    counts = {spec.name: len(spec.points) for spec in specs}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise UserError(f"tune: expected as many points for every row, found {found}")
    labels = dict.fromkeys(spec.label for spec in specs)
    if study.reference and study.reference not in labels:
        raise UserError(f"reference: no row {study.reference!r}.{nearest(study.reference, labels)}")
    for field in ("seeds", "tune_seeds"):
        given: Any = getattr(study, field)
        seeds = list(given) if isinstance(given, Iterable) else []
        whole = all(type(seed) is int for seed in seeds)
        if not seeds or not whole or len(set(seeds)) < len(seeds):
            raise UserError(
                f"{field}: expected a list of different whole numbers, such as (0, 1, 2), found "
                f"{given!r}"
            )


def _points(tune: Points, row: Overrides) -> tuple[Overrides, ...]:
    points = tune(row) if callable(tune) else tune
    return tuple(dict(point) for point in points) or ({},)


def _name(overrides: Overrides) -> str:
    """The text of the scheme, and ``last_part=value`` for every other key."""
    parts = [str(v) for k, v in overrides.items() if k == "scheme"]
    parts += [f"{k.rpartition('.')[2]}={v}" for k, v in overrides.items() if k != "scheme"]
    return ", ".join(parts)


def _table_names(data: Sequence[Overrides]) -> list[str]:
    """Names of tables from overrides of data and task: the data source alone if it is unique."""
    full = [_name(overrides) for overrides in data]
    sources = [str(overrides.get("data.source", "")) for overrides in data]
    return sources if len(set(zip(sources, full, strict=True))) == len(set(sources)) else full


def _has_control(scheme: str) -> bool:
    """Whether a random mask can be a control; not for phases, bare heads and full training."""
    programs = ("lp_ft", "gradual", "chain_thaw", "fine_tune", "random_mask")
    scheme = scheme.strip()
    if ">>" in scheme or scheme.startswith(programs):
        return False
    return scheme not in ("linear_probe", "head", "full")

"""What all parts of a report are made from: compared rows, extra columns and drawings."""

from __future__ import annotations

import dataclasses

from finetune_jax.ablation.outcome import TableRow

COSTS = ("trainable", "step_flops")
"""Attributes of `RunCost` by which rows are compared, beside their scores."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval: of a score, or of a paired difference of scores.

    Attributes:
      value: mean over seeds; nan if there is no seed.
      low: lower end of the 95 % interval; nan if there is no interval.
      high: upper end of the 95 % interval; nan if there is no interval.
      seeds: number of seeds. With several seeds the interval is Student's t interval over seeds.
        With one seed a score has the interval of its task, over examples, and a difference has no
        interval.
    """

    value: float
    low: float
    high: float
    seeds: int


@dataclasses.dataclass(frozen=True)
class ComparedRow:
    """A row compared with the other rows of its table.

    All p-values are two-sided and belong to the difference to the reference row. Values with
    ``_holm`` are adjusted over the rows of the table (Holm 1979). Without a difference all p-values
    are nan.

    Attributes:
      row: the row.
      score: test score by the metric of the outcome.
      difference: score of the row minus score of the reference row, paired over the seeds that both
        have; None for the reference row itself, and without common seeds.
      p_seeds: p-value of the paired t-test over seeds; nan with fewer than two seeds, and where all
        seeds have exactly the same non-zero difference, which leaves no spread for the test.
      p_seeds_holm: `p_seeds` after adjustment.
      p_examples: p-value of McNemar's test or of the paired bootstrap over examples.
      p_examples_holm: `p_examples` after adjustment.
      front: the costs among `COSTS` for which the row is on the Pareto front: no other row is at
        least as cheap and at least as good, and better in one of the two.
      dominated_by: labels of the rows that cost no more by all of `COSTS` and are significantly
        better over examples, with Holm's adjustment over all pairs of the table.
    """

    row: TableRow
    score: Estimate
    difference: Estimate | None
    p_seeds: float
    p_seeds_holm: float
    p_examples: float
    p_examples_holm: float
    front: tuple[str, ...]
    dominated_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The rows of one table, compared.

    Attributes:
      name: name of the table; empty if the outcome has only one table.
      reference: label of the row that the other rows are compared with.
      test: name of the test over examples, such as ``McNemar's test``; empty if there is none.
      budget: tuning budget of every row, in runs of full length.
      rows: the rows in the order of the outcome.
    """

    name: str
    reference: str
    test: str
    budget: float
    rows: tuple[ComparedRow, ...]


@dataclasses.dataclass(frozen=True)
class ExtraColumn:
    """A column of a table beside the test score, such as accuracy on corrupted images.

    Attributes:
      name: header of the column.
      shifted: whether the column is a score on examples from another distribution than the test
        split.
      estimates: estimate by row name.
      not_run: the reason if no row has an estimate; otherwise empty.
    """

    name: str
    shifted: bool
    estimates: dict[str, Estimate]
    not_run: str = ""

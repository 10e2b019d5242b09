"""What all parts of a report are made from: compared rows, extra columns and drawings."""

from __future__ import annotations

import dataclasses
import math

from finetune_jax.ablation.outcome import TableRow

COSTS = ("trainable", "step_flops")
"""Attributes of `RunCost` by which rows are compared, beside their scores."""


BOTH, EXAMPLES, SEEDS = "seeds and examples", "examples", "seeds"
"""What an interval or a p-value covers: training again with other seeds, testing on other examples,
or both."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval: of a score, or of a paired difference of scores.

    Attributes:
      value: mean over seeds; nan if there is no seed.
      low: lower end of the 95 % interval; nan if there is no interval.
      high: upper end of the 95 % interval; nan if there is no interval.
      seeds: number of seeds.
      covers: what the interval covers, `BOTH`, `EXAMPLES` or `SEEDS`; empty if there is none. With
        fewer than three seeds no interval covers seeds. A score with one seed has the interval of
        its task.
    """

    value: float
    low: float
    high: float
    seeds: int
    covers: str = ""


@dataclasses.dataclass(frozen=True)
class PairTest:
    """The difference between two rows over their common seeds.

    Attributes:
      difference: our score minus their score.
      p: two-sided p-value of no difference; nan if there is no test.
      test: name of the test, one of `statistics.COVERED`; empty if there is none.
      p_holm: `p` after Holm's adjustment over all pairs of the table; nan for a test over seeds
        alone, without the examples.
    """

    difference: Estimate
    p: float
    test: str
    p_holm: float = math.nan

    @property
    def reversed(self) -> PairTest:
        """The same pair in the other order."""
        gap = self.difference
        negated = dataclasses.replace(gap, value=-gap.value, low=-gap.high, high=-gap.low)
        return dataclasses.replace(self, difference=negated)


@dataclasses.dataclass(frozen=True)
class ComparedRow:
    """A row compared with the other rows of its table.

    The p-values are two-sided and belong to the difference to the reference row; they are nan
    without a difference.

    Attributes:
      row: the row.
      score: test score by the metric of the outcome.
      difference: score of the row minus score of the reference row, paired over the seeds that both
        have; None for the reference row itself, and without common seeds.
      p: p-value of the difference; nan where there is no test.
      p_holm: `p` after adjustment over the rows of the table (Holm 1979).
      test: name of the test of `p`, see `statistics.pair_test`; empty if there is none.
      front: the costs among `COSTS` for which the row is on the Pareto front: no other row is at
        least as cheap and at least as good, and better in one of the two.
      dominated_by: labels of the rows that cost no more by all of `COSTS` and are significantly
        better, with Holm's adjustment over all pairs of the table. A test over seeds alone, without
        the examples, does not count.
    """

    row: TableRow
    score: Estimate
    difference: Estimate | None
    p: float
    p_holm: float
    test: str
    front: tuple[str, ...]
    dominated_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The rows of one table, compared.

    Attributes:
      name: name of the table; empty if the outcome has only one table.
      reference: label of the row that the other rows are compared with.
      tests: names of the tests of the p-values of the table, each once.
      budget: tuning budget of every row, in runs of full length.
      rows: the rows in the order of the outcome.
      pairs: by the names of two rows, in both orders, their difference.
    """

    name: str
    reference: str
    tests: tuple[str, ...]
    budget: float
    rows: tuple[ComparedRow, ...]
    pairs: dict[tuple[str, str], PairTest]


@dataclasses.dataclass(frozen=True)
class ExtraColumn:
    """A column of a table beside the test score, such as accuracy on corrupted images.

    Attributes:
      name: name of the column in files.
      heading: header of the column for people.
      score: raw name of the score of the column, which decides how its numbers are written.
      shifted: whether the column is a score on examples from another distribution than the test
        split.
      estimates: estimate by row name.
      not_run: the reason if no row has an estimate; otherwise empty.
    """

    name: str
    heading: str
    score: str
    shifted: bool
    estimates: dict[str, Estimate]
    not_run: str = ""

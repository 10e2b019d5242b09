"""Bayesian search by Optuna (Akiba et al. 2019, arXiv 1907.10902), an optional package.

With ``optuna(trials=20)`` the points of a study only define the search space. The values of a
numeric key range from its smallest to its largest value, on a log scale where both are positive and
differ by a factor of ten or more; the values of another key are the choices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_jax.ablation.search.base import Proposal, Trial
from finetune_jax.ablation.study import RowSpec
from finetune_jax.errors import UserError, lacks, require_library


@dataclasses.dataclass(frozen=True)
class OptunaSearch:
    """Tree-structured Parzen estimators, which propose a few points at a time.

    Attributes:
      trials: number of points per row.
      batch: number of points proposed at once, so that they can train together.
      seed: seed of Optuna's sampler.
    """

    trials: int = 20
    batch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"optuna: {name} must be a whole number >= 1, found {value!r}")
        _import_optuna()

    def propose(self, row: RowSpec, trials: Mapping[str, Sequence[Trial]]) -> list[Proposal]:
        """See `Search`."""
        optuna = _import_optuna()
        of_row, space = trials.get(row.name, ()), _search_space(row)
        if len(of_row) >= self.trials:
            return []
        # A new Optuna study is made from all trials so far, so that an interrupted search continues
        # as if it had not been interrupted.
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=self.seed + len(of_row), constant_liar=True),
        )
        states = optuna.trial.TrialState
        for trial in of_row:
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.point,
                    distributions=space,
                    value=trial.value,
                    state=states.COMPLETE if trial.value is not None else states.FAIL,
                )
            )
        count = min(self.batch, self.trials - len(of_row))
        return [Proposal(dict(study.ask(space).params), 1.0) for _ in range(count)]


def _search_space(row: RowSpec) -> dict[str, Any]:
    """Optuna's distribution of each key of the points of a row."""
    distributions = _import_optuna().distributions
    space = {}
    for key in row.points[0]:
        values = [point[key] for point in row.points]
        low, high = min(values, key=_order), max(values, key=_order)
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            space[key] = distributions.CategoricalDistribution(list(dict.fromkeys(values)))
        elif all(isinstance(v, int) for v in values):
            space[key] = distributions.IntDistribution(low, high)
        else:
            log = low > 0 and high >= 10 * low
            space[key] = distributions.FloatDistribution(float(low), float(high), log=log)
    if not space:
        raise UserError(f"optuna: row {row.name!r} has nothing to tune; give the study points")
    return space


def _order(value: Any) -> tuple[bool, Any]:
    number = isinstance(value, int | float)
    return number, value if number else str(value)


def _import_optuna() -> Any:
    try:
        import optuna

        require_library(optuna)
    except ImportError:
        raise lacks("search=optuna(…)", "the library optuna", "optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

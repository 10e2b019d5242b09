"""Bayesian search by Optuna (Akiba et al. 2019, arXiv 1907.10902), an extra: ``optuna(trials=20)``.

The points of a study then only span the space: numbers lie between the least and the greatest, on a
log scale where both are positive and a factor of ten or more apart; other values are choices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_jax.ablation.search import Trial, Wish
from finetune_jax.ablation.study import Line
from finetune_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptunaSearch:
    """Tree-structured Parzen estimators, asked for a few points at a time.

    Attributes:
      trials: points per row.
      batch: asked for at once, so that they can train together.
      seed: of the draws.
    """

    trials: int = 20
    batch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"optuna: {name} must be a whole number >= 1, found {value!r}")
        _library()

    def ask(self, line: Line, tried: Mapping[str, Sequence[Trial]]) -> list[Wish]:
        """See `Search`."""
        optuna = _library()
        own, space = tried.get(line.name, ()), _space(line)
        if len(own) >= self.trials:
            return []
        # Made anew from what is known, so that a killed search goes on as if it had not been.
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=self.seed + len(own), constant_liar=True),
        )
        states = optuna.trial.TrialState
        for trial in own:
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.point,
                    distributions=space,
                    value=trial.value,
                    state=states.COMPLETE if trial.value is not None else states.FAIL,
                )
            )
        count = min(self.batch, self.trials - len(own))
        return [(dict(study.ask(space).params), 1.0) for _ in range(count)]


def _space(line: Line) -> dict[str, Any]:
    """Optuna's distributions of a row's points."""
    distributions = _library().distributions
    space = {}
    for key in line.points[0]:
        values = [point[key] for point in line.points]
        low, high = min(values, key=_order), max(values, key=_order)
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            space[key] = distributions.CategoricalDistribution(list(dict.fromkeys(values)))
        elif all(isinstance(v, int) for v in values):
            space[key] = distributions.IntDistribution(low, high)
        else:
            log = low > 0 and high >= 10 * low
            space[key] = distributions.FloatDistribution(float(low), float(high), log=log)
    if not space:
        raise UserError(f"optuna: row {line.name!r} has nothing to tune; give the study points")
    return space


def _order(value: Any) -> tuple[bool, Any]:
    number = isinstance(value, int | float)
    return number, value if number else str(value)


def _library() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "search: optuna(...) needs the package optuna: pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

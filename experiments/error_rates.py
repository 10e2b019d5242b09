"""How often the test between two rows of an ablation is wrong, by simulation.

Two schemes are equally good on average over seeds and examples, but each seed of a scheme is a
little better or worse than the scheme, and each scheme prefers other examples. A test at the 5 %
level should call 5 % of such pairs different. The script counts how often the test of
`finetune_jax.metrics.crossed` does, McNemar's test on the predictions of all seeds pooled, and the
paired t-test over seeds; how often they notice a real difference; and how often the 95 % interval
of a score has the true score in it. Everything is drawn from fixed seeds.

A prediction is right where base + example + seed + preference + noise > 0; all but base are normal.
The example has standard deviation 2, the seed and the preference are those of a table's columns,
and the noise is drawn for each prediction. Seeds of two schemes with the same number correlate by
0.3.

Hardware: 2 CPU cores, minutes.

Command:
  python -m experiments.error_rates
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
from absl import app
from scipy.stats import norm

from finetune_jax.metrics import crossed
from finetune_jax.metrics.intervals import bounded
from finetune_jax.metrics.names import SHARE
from finetune_jax.metrics.paired import mcnemar
from finetune_jax.progress import each

OUT = Path(__file__).with_suffix(".md")
_BASE, _EXAMPLE, _CORRELATION = 1.5, 2.0, 0.3
SEEDS, EXAMPLES, SEED_EFFECTS = (1, 2, 3, 5), (50, 200, 1000), (0.0, 0.1, 0.3, 1.0)
PREFERENCES = ((0.7, 0.7),)
"""Standard deviations of the preferences of a scheme for examples, and of the noise."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
      seeds: number of seeds of each scheme.
      examples: number of test examples.
      seed_effect: standard deviation between the seeds of a scheme.
      preference: standard deviation of the preference of a scheme for each example.
      noise: standard deviation of the noise of each prediction.
      gain: how much better the first scheme is; 0 for equal schemes.
    """

    seeds: int
    examples: int
    seed_effect: float
    preference: float
    noise: float
    gain: float = 0.0

    @property
    def share(self) -> float:
        """True share of correct predictions of the second scheme."""
        parts = (_EXAMPLE, self.seed_effect, self.preference, self.noise)
        return float(norm.cdf(_BASE / math.hypot(*parts)))


@dataclasses.dataclass(frozen=True)
class Rates:
    """Shares of all simulated pairs, in per cent.

    Attributes:
      crossed: called different by the test over seeds and examples, McNemar's for one seed.
      pooled: called different by McNemar's test on all predictions.
      over_seeds: called different by the paired t-test over seeds; nan below three seeds.
      coverage: 95 % intervals of a score that have the true score in them; nan below three seeds.
    """

    crossed: float
    pooled: float
    over_seeds: float
    coverage: float


def draw(setting: Setting, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Whether the predictions of two schemes are right: bool[seeds, examples] of each."""
    s, n = setting.seeds, setting.examples
    shared = math.sqrt(_CORRELATION) * generator.normal(size=(1, s, 1))
    own = math.sqrt(1 - _CORRELATION) * generator.normal(size=(2, s, 1))
    score = _BASE + _EXAMPLE * generator.normal(size=(1, 1, n))
    score = score + setting.seed_effect * (shared + own)
    score = score + setting.preference * generator.normal(size=(2, 1, n))
    score += setting.noise * generator.normal(size=(2, s, n))
    score[0] += setting.gain
    first, second = score > 0
    return first, second


def p_value(first: np.ndarray, second: np.ndarray) -> float:
    """The p-value of two rows in a report of an ablation; arguments bool[seeds, examples]."""
    gaps = first.astype(np.float64) - second
    if len(gaps) == 1 or not (gaps != gaps[0]).any():
        return mcnemar(first[0], second[0])
    means = gaps.mean(1).tolist()
    covariance = crossed.covariance_of_means(gaps)
    return crossed.p_value(
        float(np.mean(means)), crossed.over_both(means, covariance, gaps.shape[1])
    )


def covers(right: np.ndarray, share: float) -> bool:
    """Whether the 95 % interval of a score over seeds and examples has the true score in it."""
    scores, n = right.mean(1).tolist(), right.shape[1]
    spread = crossed.over_both(scores, crossed.covariance_of_means(right), n)
    mean = float(np.mean(scores))
    low, high = bounded(mean, spread.error, crossed.quantile(spread), n, SHARE)
    return low <= share <= high


def rates(setting: Setting, pairs: int, seed: int = 0) -> Rates:
    """Simulates pairs of schemes, and counts."""
    generator = np.random.Generator(np.random.Philox(seed))
    counts = np.zeros(4)
    several = setting.seeds >= crossed.MIN_SEEDS
    for _ in range(pairs):
        first, second = draw(setting, generator)
        counts[0] += p_value(first, second) < 0.05
        counts[1] += mcnemar(first.ravel(), second.ravel()) < 0.05
        if several:
            gaps = first.mean(1) - second.mean(1)
            spread = crossed.over_seeds(gaps.tolist())
            counts[2] += crossed.p_value(float(gaps.mean()), spread) < 0.05
            counts[3] += covers(second, setting.share)
    shares = 100 * counts / pairs
    return Rates(*shares[:2].tolist(), *(shares[2:].tolist() if several else (math.nan, math.nan)))


def nulls() -> list[Setting]:
    """Settings with equal schemes.

    With one seed, equal runs have no seed effect: that seeds differ is what one seed cannot show.
    """
    return [
        Setting(s, n, effect, *preference)
        for s, n, effect, preference in itertools.product(
            SEEDS, EXAMPLES, SEED_EFFECTS, PREFERENCES
        )
        if s > 1 or not effect
    ]


def written(found: dict[Setting, Rates], power: dict[Setting, Rates], pairs: int) -> str:
    """Both tables as Markdown."""
    lines = [
        "# Error rates of the test between two rows",
        "",
        f"Written by `python -m experiments.error_rates`: {pairs:,} pairs of schemes per line, "
        "shares in per cent; the script says how they are drawn.",
        "",
        "## Equal schemes that are called different at the 5 % level, and coverage of intervals",
        "",
        *_table(found, gain=False),
        "",
        "## Different schemes that are called different",
        "",
        "The gain is that of the first scheme in points of accuracy.",
        "",
        *_table(power, gain=True),
    ]
    return "\n".join(lines) + "\n"


def _table(found: dict[Setting, Rates], gain: bool) -> list[str]:
    header = ["seeds", "examples", "seed effect", "preference", "noise", *["gain"] * gain]
    header += ["test over both", "McNemar, pooled", "t over seeds", *["coverage"] * (not gain)]
    lines = [f"| {' | '.join(header)} |", "|" + "--:|" * len(header)]
    for one, rate in found.items():
        cells = [f"{one.seeds}", f"{one.examples:,}", f"{one.seed_effect:g}"]
        cells += [f"{one.preference:g}", f"{one.noise:g}"]
        if gain:
            cells.append(f"{100 * _gain(one):.1f}")
        numbers = [rate.crossed, rate.pooled, rate.over_seeds, *[rate.coverage] * (not gain)]
        cells += ["–" if math.isnan(x) else f"{x:.1f}" for x in numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _gain(one: Setting) -> float:
    parts = (_EXAMPLE, one.seed_effect, one.preference, one.noise)
    return float(norm.cdf((_BASE + one.gain) / math.hypot(*parts))) - one.share


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    # A share of 5 % of so many pairs has a standard error of 0.34 %.
    pairs = 4000
    found = {one: rates(one, pairs) for one in each(nulls(), "equal schemes")}
    different = [
        Setting(s, n, effect, 0.7, 0.7, gain)
        for s, n, effect, gain in itertools.product(SEEDS, (200,), (0.1, 0.3), (0.3,))
    ]
    power = {one: rates(one, pairs) for one in each(different, "different schemes")}
    OUT.write_text(written(found, power, pairs))


if __name__ == "__main__":
    app.run(main)

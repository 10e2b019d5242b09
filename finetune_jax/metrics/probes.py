"""Closed-form probes of frozen features: k nearest neighbours, and ridge on a few examples.

Probes are fast enough to run at every evaluation of a training run: ``eval.probes = "knn(k=20) +
few_shot(10)"``.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, parse

TRAINING_EXAMPLES = 10_000
"""Most training examples that probes read in an evaluation during training, to save time."""

_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Probe:
    """A probe and its options.

    Attributes:
      name: ``knn`` or ``few_shot``.
      number: number of neighbours (``knn``), or of training examples per class (``few_shot``).
      temperature: temperature of the neighbours' votes, above 0 (``knn``).
      l2: strength of the ridge, above 0 (``few_shot``).
      draws: number of random sets of training examples, over which the score is averaged
        (``few_shot``).
    """

    name: str
    number: int
    temperature: float = 0.07
    l2: float = 1.0
    draws: int = 3

    @property
    def key(self) -> str:
        """Name of the probe's score, such as ``knn20`` or ``few_shot10``."""
        return f"{self.name}{self.number}"

    def shortfall(self, labels: np.ndarray) -> str:
        """What the probe uses in place of more training examples than there are; "" for nothing.

        Args:
          labels: labels i[n] of the training examples.
        """
        if self.name == "knn":
            few, of = len(labels), "training examples"
        else:
            few, of = int(min(np.unique(labels, return_counts=True)[1], default=0)), "of a class"
        if few >= self.number:
            return ""
        return f"{self.key}: there are only {few} {of}, and the probe uses all of them"

    def score(
        self, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
    ) -> float:
        """Accuracy in [0, 1] of the probe on `test`.

        Args:
          train: features f32[n, width] and labels i[n] of training examples.
          test: features and labels of the examples that are scored.
        """
        if self.name == "knn":
            return knn(train, test, k=self.number, temperature=self.temperature)
        draws = [
            few_shot(train, test, shots=self.number, l2=self.l2, seed=i) for i in range(self.draws)
        ]
        return float(np.mean(draws))


# By name of the probe: name and default of `Probe.number` in the text, and the other options.
_PROBES = {"knn": ("k", 20, ("temperature",)), "few_shot": ("shots", 10, ("l2", "draws"))}


def parse_probes(text: str) -> tuple[Probe, ...]:
    """Parses ``knn(k=20, temperature=0.07) + few_shot(10, l2=1.0, draws=3)``.

    Returns:
      The probes in the order of the text; none for an empty text.

    Raises:
      UserError: an unknown probe or argument, a value that is not a positive number, or the same
        probe twice.
    """
    if not text.strip():
        return ()
    probes = tuple(_probe(call) for call in parse(text))
    keys = [probe.key for probe in probes]
    if len(set(keys)) < len(keys):
        raise UserError(f"expected each probe once, found {', '.join(keys)}")
    return probes


def _probe(call: Call) -> Probe:
    if call.name not in _PROBES:
        raise UserError(f"unknown probe {call.name!r}.{nearest(call.name, _PROBES)}")
    first, default, others = _PROBES[call.name]
    given = dict(call.kwargs)
    if len(call.args) > 1 or (call.args and first in given):
        raise UserError(f"probe {call}: expected one number, {first}")
    number = call.args[0] if call.args else given.pop(first, default)
    for key in given:
        if key not in others:
            raise UserError(
                f"probe {call}: unknown argument {key!r}.{nearest(key, (first, *others))}"
            )
    counts = {first: number, **{k: v for k, v in given.items() if k == "draws"}}
    for key, value in counts.items():
        if type(value) is not int or value < 1:
            raise UserError(
                f"probe {call}: {key}: expected a whole number of at least 1, found {value!r}"
            )
    for key, value in given.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UserError(f"probe {call}: {key}: expected a positive number, found {value!r}")
    return Probe(call.name, number, **given)


def probe_scores(
    probes: tuple[Probe, ...],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> dict[str, float]:
    """Accuracy of each probe on `test`, by `Probe.key`; arguments as for `Probe.score`."""
    return {probe.key: probe.score(train, test) for probe in probes}


def sample(count: int, limit: int) -> np.ndarray:
    """A fixed random sample of example numbers, i64[min(count, limit)], sorted.

    Args:
      count: number of examples.
      limit: largest size of the sample; 0 for all examples.
    """
    if not limit or limit >= count:
        return np.arange(count)
    generator = np.random.Generator(np.random.Philox(0))
    return np.sort(generator.choice(count, limit, replace=False))


def knn(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of weighted nearest neighbours by cosine (Wu et al. 2018, arXiv 1805.01978).

    Args:
      train: features f32[n, width] and labels i[n].
      test: features and labels of the examples that are scored.
      k: number of neighbours; all training examples where there are fewer.
      temperature: a neighbour's vote is exp(cosine / temperature); of classes with equal votes the
        lowest number wins.

    Returns:
      Accuracy in [0, 1]; nan without training or test examples.
    """
    (bank, labels), (queries, truth) = train, test
    if not len(bank) or not len(queries):
        return math.nan
    bank, queries = _unit(bank), _unit(queries)
    k, classes = min(k, len(bank)), int(max(labels.max(), truth.max())) + 1
    right = 0
    for start in range(0, len(queries), _CHUNK):
        cosine = queries[start : start + _CHUNK] @ bank.T
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        # Relative to the nearest neighbour's cosine: only ratios of votes matter, and no
        # exponential overflows.
        closeness = np.take_along_axis(cosine, near, 1).astype(np.float64)
        weights = np.exp((closeness - closeness.max(1, keepdims=True)) / temperature)
        votes = np.zeros((len(cosine), classes))
        np.add.at(votes, (np.arange(len(cosine))[:, None], labels[near]), weights)
        right += int((votes.argmax(1) == truth[start : start + _CHUNK]).sum())
    return right / len(queries)


def few_shot(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    shots: int,
    l2: float = 1.0,
    seed: int = 0,
) -> float:
    """Accuracy of a ridge regression on a few examples of each class.

    Least squares on targets of -1 and 1, solved in closed form. Mean and scale of the features come
    from the few examples, so nothing depends on the split that is scored.

    Args:
      train: features f32[n, width] and labels i[n].
      test: features and labels of the examples that are scored.
      shots: training examples per class; all examples of a class where there are fewer.
      l2: strength of the ridge, for features scaled to mean norm 1.
      seed: seed of the choice of training examples.

    Returns:
      Accuracy in [0, 1]; nan without training or test examples.
    """
    (features, labels), (queries, truth) = train, test
    if not len(features) or not len(queries):
        return math.nan
    generator = np.random.Generator(np.random.Philox(seed))
    order, chosen = generator.permutation(len(labels)), []
    seen = np.unique(labels)
    for label in seen:
        chosen += order[labels[order] == label][:shots].tolist()
    x, y = features[chosen].astype(np.float64), labels[chosen]
    mean = x.mean(0)
    scale = max(float(np.linalg.norm(x - mean, axis=1).mean()), 1e-12)
    x, targets = (x - mean) / scale, 2.0 * (y[:, None] == seen) - 1
    # Solved in the dual, [n, n]: there are usually fewer examples than features.
    dual = np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), targets - targets.mean(0))
    outputs = ((queries - mean) / scale) @ (x.T @ dual) + targets.mean(0)
    return float((seen[outputs.argmax(1)] == truth).mean())


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

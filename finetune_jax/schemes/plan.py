"""The plan: a scheme resolved against one model, the one place where trainability is decided."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from finetune_jax import tree
from finetune_jax.models import Mode

FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves that share a learning rate multiplier and weight decay.

    Attributes:
      lr: factor on the run's learning rate, > 0.
      decay: weight decay of this group, >= 0; None takes the optimizer's.
    """

    lr: float = 1.0
    decay: float | None = None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What the plan says of one leaf."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    group: str
    decays: bool

    @property
    def stage(self) -> str:
        """The top-level key this leaf belongs to."""
        return self.path.split("/", 1)[0]

    @property
    def trains(self) -> bool:
        """Whether this leaf is in the trainable half."""
        return self.group != FROZEN


@dataclasses.dataclass(frozen=True)
class Plan:
    """Group of every leaf, mode of every stage.

    Attributes:
      scheme: canonical text of the scheme.
      stages: stage names in forward order.
      leaves: one entry per leaf, in forward order of stages.
      groups: trainable groups by name.
      batch_norm: the BatchNorm policy the modes follow.
      tracked: stages whose BatchNorm statistics follow the batches; others use and keep theirs.
      statistics: paths of all running statistics.
      dropout: stages whose dropout is active in training.
    """

    scheme: str
    stages: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    groups: dict[str, Group]
    batch_norm: str
    tracked: tuple[str, ...]
    statistics: tuple[str, ...]
    dropout: tuple[str, ...]

    @property
    def trainable(self) -> tuple[str, ...]:
        """Leaf paths of the trainable half."""
        return tuple(leaf.path for leaf in self.leaves if leaf.trains)

    @property
    def mode(self) -> Mode:
        """How the stages run in the training step."""
        return Mode(frozenset(self.tracked), frozenset(self.dropout))

    @property
    def tracked_statistics(self) -> tuple[str, ...]:
        """Paths of the running statistics that may change."""
        return tuple(p for p in self.statistics if p.split("/", 1)[0] in self.tracked)

    def split(self, params: tree.Tree) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (trainable, frozen) halves of a param pytree; `tree.merge` undoes it."""
        return tree.split(params, self.trainable)

    def split_statistics(self, stats: tree.Tree) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (tracked, kept) halves of the BatchNorm statistics."""
        return tree.split(stats, self.tracked_statistics)

    def labels(self) -> dict[str, Any]:
        """Group names in the structure of the trainable half, for `optax.multi_transform`."""
        return tree.unflatten({leaf.path: leaf.group for leaf in self.leaves if leaf.trains})

    def decay_mask(self) -> dict[str, Any]:
        """Bools in the structure of the trainable half: True where weight decay applies."""
        return tree.unflatten({leaf.path: leaf.decays for leaf in self.leaves if leaf.trains})

    def to_json(self) -> dict[str, Any]:
        """A JSON object that holds the whole plan and its hash."""
        return {"hash": self.hash, **self._content()}

    def _content(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of everything the plan says; its wording is left out."""
        content = self._content()
        del content["scheme"]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: dict[str, Any], new: dict[str, Any], limit: int = 12) -> str:
    """A readable diff of two plans' JSON: scheme, policy, and the leaves that changed group."""
    lines = []
    for key in ("scheme", "batch_norm"):
        if old[key] != new[key]:
            lines.append(f"  {key}: {old[key]!r} -> {new[key]!r}")
    before = {leaf["path"]: leaf for leaf in old["leaves"]}
    after = {leaf["path"]: leaf for leaf in new["leaves"]}
    changes = []
    for path in [*before, *(p for p in after if p not in before)]:
        a, b = before.get(path), after.get(path)
        if a != b:
            describe = lambda leaf: f"{leaf['group']} {tuple(leaf['shape'])}" if leaf else "absent"  # noqa: E731
            changes.append(f"  {path}: {describe(a)} -> {describe(b)}")
    lines += changes[:limit]
    if len(changes) > limit:
        lines.append(f"  … and {len(changes) - limit} more leaves")
    for key in ("groups", "tracked", "dropout"):
        if old[key] != new[key]:
            lines.append(f"  {key}: {old[key]} -> {new[key]}")
    return "\n".join(lines)

"""The plan: a scheme resolved against one model, the one place where trainability is decided."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax

from finetune_jax import tree
from finetune_jax.deltas import Adapted, Delta
from finetune_jax.errors import UserError
from finetune_jax.models import Mode, StagedModel

FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves that share weight decay and schedule.

    Attributes:
      decay: weight decay of this group, >= 0; None takes the run's.
      schedule: learning rate schedule, such as ``onecycle(pct=0.3)``; None takes the phase's.
      warmup: warm-up steps; None takes the phase's.
    """

    decay: float | None = None
    schedule: str | None = None
    warmup: int | None = None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What the plan says of one leaf.

    Attributes:
      path: leaf path.
      shape: of the array.
      dtype: of the array.
      group: name of its group, or ``frozen``.
      lr: factor on the phase's learning rate, > 0; 0 when frozen.
      decays: whether weight decay applies.
      delta: whether the scheme added it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    group: str
    lr: float
    decays: bool
    delta: bool = False

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
      leaves: one entry per leaf, in forward order of stages, delta leaves included.
      groups: trainable groups by name.
      deltas: all deltas in place, those of earlier phases first.
      measured: (statistic, settings) when the rates are measured on data before every epoch.
      batch_norm: the BatchNorm policy the modes follow.
      tracked: stages whose BatchNorm statistics follow the batches; others use and keep theirs.
      statistics: paths of all running statistics.
      dropout: stages whose dropout is active in training.
    """

    scheme: str
    stages: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    groups: dict[str, Group]
    deltas: tuple[Delta, ...]
    measured: tuple[str, tuple[tuple[str, Any], ...]] | None
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

    @property
    def prefix(self) -> tuple[str, ...]:
        """The longest run of stages from the input that training cannot change.

        Nothing trains in them, their statistics stay, their dropout is off: for the same image they
        give the same activations in every epoch.
        """
        busy = {leaf.stage for leaf in self.leaves if leaf.trains} | {*self.tracked, *self.dropout}
        count = next(i for i, stage in enumerate(self.stages) if stage in busy)
        return self.stages[:count]

    def adapt(self, model: StagedModel) -> Adapted:
        """The model with the plan's deltas in place."""
        return Adapted(model, self.deltas)

    def add_deltas(self, params: tree.Tree, key: jax.Array) -> dict[str, Any]:
        """Puts start values of the deltas that `params` does not hold yet beside its leaves."""
        leaves = tree.flatten(params)
        for delta in self.deltas:
            values = delta.initial(key, leaves)
            leaves |= {path: x for path, x in values.items() if path not in leaves}
        return tree.unflatten(leaves)

    def split(self, params: tree.Tree) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (trainable, frozen) halves of a param pytree; `tree.merge` undoes it.

        Raises:
          UserError: one array stands at two paths (tied leaves) that the plan treats differently.
        """
        seen: dict[int, str] = {}
        groups = {leaf.path: leaf.group for leaf in self.leaves}
        for path, array in tree.flatten(params).items():
            other = seen.setdefault(id(array), path)
            if groups[other] != groups[path]:
                raise UserError(
                    f"the leaves {other!r} and {path!r} are tied (one array), but scheme "
                    f"{self.scheme!r} puts them into {groups[other]!r} and {groups[path]!r}"
                )
        return tree.split(params, self.trainable)

    def split_statistics(self, stats: tree.Tree) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (tracked, kept) halves of the BatchNorm statistics."""
        return tree.split(stats, self.tracked_statistics)

    def of_trainable(self, attribute: str) -> dict[str, Any]:
        """One attribute of `Leaf` in the structure of the trainable half."""
        return tree.unflatten({x.path: getattr(x, attribute) for x in self.leaves if x.trains})

    def to_json(self) -> dict[str, Any]:
        """A JSON object that holds the whole plan and its hash."""
        return {"hash": self.hash, **self._content}

    # Every checkpoint holds it, and is checked against it.
    @functools.cached_property
    def _content(self) -> dict[str, Any]:
        content = dataclasses.asdict(dataclasses.replace(self, deltas=()))
        content["deltas"] = [delta.to_json() for delta in self.deltas]
        return json.loads(json.dumps(content))

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of everything the plan says; its wording is left out."""
        content = {key: value for key, value in self._content.items() if key != "scheme"}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: dict[str, Any], new: dict[str, Any], limit: int = 12) -> str:
    """A readable diff of two plans' JSON: scheme, policy, and the leaves that changed group."""
    lines = []
    for key in ("scheme", "batch_norm", "measured"):
        if old.get(key) != new.get(key):
            lines.append(f"  {key}: {old.get(key)!r} -> {new.get(key)!r}")
    before = {leaf["path"]: leaf for leaf in old["leaves"]}
    after = {leaf["path"]: leaf for leaf in new["leaves"]}
    changes = []
    for path in [*before, *(p for p in after if p not in before)]:
        a, b = before.get(path), after.get(path)
        if a != b:
            changes.append(f"  {path}: {_describe(a)} -> {_describe(b)}")
    lines += changes[:limit]
    if len(changes) > limit:
        lines.append(f"  … and {len(changes) - limit} more leaves")
    for key in ("groups", "tracked", "dropout"):
        if old[key] != new[key]:
            lines.append(f"  {key}: {old[key]} -> {new[key]}")
    return "\n".join(lines)


def _describe(leaf: dict[str, Any] | None) -> str:
    if leaf is None:
        return "absent"
    rate = f" lr x{leaf['lr']:g}" if leaf["group"] != FROZEN and leaf["lr"] != 1 else ""
    return f"{leaf['group']} {tuple(leaf['shape'])}{rate}"

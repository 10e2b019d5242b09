"""The plan: a scheme resolved against one model; only the plan decides what trains."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax

from finetune_jax import deltas, doors, tree
from finetune_jax.deltas import Adapted, Delta
from finetune_jax.errors import UserError
from finetune_jax.models import Mode, StagedModel
from finetune_jax.quantization import dequantize
from finetune_jax.schemes.model_spec import Measurement

FROZEN = "frozen"
"""Name of the group of leaves that do not train."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves that share weight decay and schedule.

    Attributes:
      decay: weight decay of this group, >= 0; None takes the run's decay.
      schedule: learning rate schedule, such as ``onecycle(pct=0.3)``; None takes the phase's
        schedule.
      warmup: number of warm-up steps; None takes the phase's number.
    """

    decay: float | None = None
    schedule: str | None = None
    warmup: int | None = None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The plan's entry for one leaf.

    Attributes:
      path: leaf path.
      shape: shape of the array.
      dtype: name of the array's dtype.
      group: name of the leaf's group, or ``frozen``.
      lr: factor on the phase's learning rate, > 0; 0 when frozen.
      decays: whether weight decay applies.
      delta: whether the scheme added the leaf.
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
    """The group of every leaf and the mode of every stage.

    Attributes:
      scheme: canonical text of the scheme.
      stages: stage names in forward order.
      leaves: one entry per leaf, delta leaves included, in forward order of stages.
      groups: trainable groups by name.
      deltas: all deltas in place, those of earlier phases first.
      measured: how the rates are measured on data before every epoch; None for fixed rates.
      batch_norm: the BatchNorm policy, see `finetune_jax.schemes.resolve`.
      tracked: stages whose BatchNorm statistics follow the batches; all other stages use and keep
        their statistics.
      statistics: paths of all running statistics.
      dropout: stages whose dropout is active in training.
      doors: names ``package.module:name`` of the other packages' schemes and programs that made the
        plan, for the record.
    """

    scheme: str
    stages: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    groups: dict[str, Group]
    deltas: tuple[Delta, ...]
    measured: Measurement | None
    batch_norm: str
    tracked: tuple[str, ...]
    statistics: tuple[str, ...]
    dropout: tuple[str, ...]
    doors: tuple[str, ...] = dataclasses.field(default=(), compare=False)

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
        """The first stages, up to the first stage whose output training can change.

        No leaf of these stages trains, their statistics stay and their dropout is off, so they
        compute the same activations of the same image in every epoch.
        """
        active = {leaf.stage for leaf in self.leaves if leaf.trains}
        active |= {*self.tracked, *self.dropout}
        count = next(i for i, stage in enumerate(self.stages) if stage in active)
        return self.stages[:count]

    def adapt(self, model: StagedModel) -> Adapted:
        """The model with the plan's deltas in place."""
        return Adapted(model, self.deltas)

    def add_deltas(self, params: tree.Tree, key: jax.Array) -> dict[str, Any]:
        """`params` and the start values of the delta leaves that `params` does not hold yet."""
        leaves, base = tree.flatten(params), tree.flatten(dequantize(params))
        for delta in self.deltas:
            values = delta.initial(key, base)
            new = {path: x for path, x in values.items() if path not in leaves}
            leaves, base = {**leaves, **new}, {**base, **new}
        return tree.unflatten(leaves)

    def split(self, params: tree.Tree) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (trainable, frozen) halves of a param pytree; `tree.merge` joins them again.

        Raises:
          UserError: one array is at two paths (tied leaves) that belong to different groups.
        """
        seen: dict[int, str] = {}
        groups = {leaf.path: leaf.group for leaf in self.leaves}
        for path, array in tree.flatten(params).items():
            other = seen.setdefault(id(array), path)
            # A plan does not have the codes and the scales of a quantized leaf; they never train.
            if groups.get(other, FROZEN) != groups.get(path, FROZEN):
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

    @property
    def providers(self) -> list[dict[str, str]]:
        """The package and version of every scheme, program and delta of another package."""
        names = [*self.doors, *deltas.doors_of(self._content["deltas"])]
        return [doors.provider(name) for name in dict.fromkeys(names)]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the whole plan, its hash, and `providers` if there are any."""
        providers = {"providers": self.providers} if self.providers else {}
        return {"hash": self.hash, **self._content, **providers}

    # Cached, because every checkpoint holds the plan's JSON and is compared with it.
    @functools.cached_property
    def _content(self) -> dict[str, Any]:
        content = dataclasses.asdict(dataclasses.replace(self, deltas=()))
        del content["doors"]
        content["deltas"] = [delta.to_json() for delta in self.deltas]
        return json.loads(json.dumps(content))

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of the plan without the scheme's text and `providers`."""
        content = {key: value for key, value in self._content.items() if key != "scheme"}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def doors_of(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """The names ``package.module:name`` in a plan's JSON: of schemes, programs and deltas."""
    providers = [str(provider["door"]) for provider in plan.get("providers", ())]
    return tuple(dict.fromkeys([*providers, *deltas.doors_of(plan.get("deltas", ()))]))


def difference(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 12) -> str:
    """The differences of two plans' JSON as text: options, and leaves whose entry changed.

    Args:
      old: the first plan's JSON.
      new: the second plan's JSON.
      limit: the largest number of leaves to print.
    """
    lines = []
    for key in ("scheme", "batch_norm", "measured", "providers"):
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


def _describe(leaf: Mapping[str, Any] | None) -> str:
    if leaf is None:
        return "absent"
    rate = f" lr x{leaf['lr']:g}" if leaf["group"] != FROZEN and leaf["lr"] != 1 else ""
    return f"{leaf['group']} {tuple(leaf['shape'])}{rate}"

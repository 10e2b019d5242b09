"""Collects the decisions of a scheme's terms or rules, from which the plan is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_jax.deltas import Delta
from finetune_jax.errors import UserError, nearest
from finetune_jax.schemes.library import RATES
from finetune_jax.schemes.model_spec import Measurement, ModelSpec
from finetune_jax.schemes.plan import FROZEN, Group


@dataclasses.dataclass
class PlanBuilder:
    """Groups, learning rates and deltas.

    Attributes:
      spec: the model's spec.
      text: canonical text of the scheme.
      group_of: name of the group, or ``frozen``, by leaf path.
      lr: factor on the phase's learning rate by path of a trainable leaf.
      groups: trainable groups by name.
      deltas: all deltas in place, those of earlier phases first.
      measured: how the learning rates are measured; None for fixed rates.
      doors: names ``package.module:name`` that the scheme's terms have imported.
    """

    spec: ModelSpec
    text: str
    group_of: dict[str, str] = dataclasses.field(default_factory=dict)
    lr: dict[str, float] = dataclasses.field(default_factory=dict)
    groups: dict[str, Group] = dataclasses.field(default_factory=dict)
    deltas: list[Delta] = dataclasses.field(default_factory=list)
    measured: Measurement | None = None
    doors: list[str] = dataclasses.field(default_factory=list)

    def freeze(self, paths: Sequence[str]) -> None:
        """Puts these leaves into the group ``frozen``."""
        self.group_of.update(dict.fromkeys(paths, FROZEN))

    def train(self, name: str, group: Group, lr: Mapping[str, float]) -> None:
        """Puts the leaves of `lr`, factors by path, into a trainable group."""
        self.groups[name] = group
        self.group_of.update(dict.fromkeys(lr, name))
        self.lr.update(lr)


def parse_group(name: str, rates: Mapping[str, Any]) -> tuple[float, Group]:
    """(factor on the learning rate, group) from the rates that a user gives to a group.

    Raises:
      UserError: an unknown rate, or a value out of range.
    """
    for key, value in rates.items():
        if key not in RATES:
            raise UserError(f"group {name!r}: unknown rate {key!r}.{nearest(key, RATES)}")
        if key == "schedule":
            if not isinstance(value, str):
                raise UserError(f"group {name!r}: schedule must be text, found {value!r}")
            continue
        valid = isinstance(value, int if key == "warmup" else int | float)
        valid = valid and not isinstance(value, bool) and math.isfinite(value)
        if not valid or value < 0 or (key == "lr" and value == 0):
            # No other key of a group freezes its leaves.
            hint = "; to freeze leaves, use the group 'frozen'" if key == "lr" and not value else ""
            raise UserError(
                f"group {name!r}: {key} must be a {'whole ' if key == 'warmup' else ''}number "
                f"{'> 0' if key == 'lr' else '>= 0'}, found {value!r}{hint}"
            )
    decay = rates.get("decay")
    group = Group(
        None if decay is None else float(decay), rates.get("schedule"), rates.get("warmup")
    )
    return float(rates.get("lr", 1.0)), group

"""An arm: one run of an ablation, named by the hash of its resolved config."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from finetune_jax import config as config_lib
from finetune_jax.ablation.axes import Overrides
from finetune_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run: a row at one point of its hyper-parameters, with one seed.

    Attributes:
      row: name of the row it belongs to.
      point: overrides that tuning chose or tries.
      seed: of the run.
      share: of the whole training length, in (0, 1].
      config: resolved, as JSON, without a test split: no arm reads one while it trains.
    """

    row: str
    point: Overrides
    seed: int
    share: float
    config: dict[str, Any]

    @property
    def key(self) -> str:
        """First 16 hex digits of the SHA-256 of the resolved config."""
        text = json.dumps(self.config, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_arm(
    base: ml_collections.ConfigDict,
    row: str,
    overrides: Overrides,
    point: Overrides,
    seed: int,
    share: float = 1.0,
) -> Arm:
    """An arm from the base config, the row's overrides, and then the point's.

    Raises:
      UserError: no such config key, or a value of another type.
    """
    config = overridden(base, {**overrides, **point, "seed": seed, "data.test": ""})
    if share != 1.0:
        if config.train.steps:
            config.train.steps = max(1, round(config.train.steps * share))
        else:
            config.train.epochs = config.train.epochs * share
    return Arm(row, dict(point), seed, share, config_lib.to_json(config))


def overridden(
    base: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A copy of `base` with values by dotted key.

    Raises:
      UserError: no such config key, or a value of another type.
    """
    config = base.copy_and_resolve_references()
    for key, value in values.items():
        node, last = config, key.split(".")
        for depth, part in enumerate(last):
            known = node.keys() if isinstance(node, config_dict.ConfigDict) else ()
            if part not in known:
                prefix = ".".join(last[:depth]) + "." * bool(depth)
                raise UserError(
                    f"no config key {key!r}.{nearest(prefix + part, [prefix + k for k in known])}"
                )
            if depth < len(last) - 1:
                node = node[part]
        try:
            # Text or a list of rules; the fields are references to either.
            with node.ignore_type() if key in ("scheme", "data.augment") else node.unlocked():
                node[last[-1]] = value
        except TypeError as error:
            raise UserError(f"{key}={value!r}: {error}") from None
    return config

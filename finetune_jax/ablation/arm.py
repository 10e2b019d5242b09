"""An arm: one run of an ablation, identified by its config and by its inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from finetune_jax import config as config_lib
from finetune_jax.ablation.axes import Overrides
from finetune_jax.arguments import meant_keys
from finetune_jax.errors import UserError, nearest
from finetune_jax.files import digest
from finetune_jax.portable import portable


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run: a row of the study at one point of its hyper-parameters, with one seed.

    Attributes:
      row: name of the row.
      point: overrides of the tuned hyper-parameters.
      seed: seed of the run.
      share: share of the full training length, in (0, 1].
      config: resolved config as JSON. Its test split is empty, because no arm reads the test split
        during training.
      made_of: digests of data, tokenizer, weights and teacher (`identity.digests`).
      known_as: key under which an earlier call recorded the arm, if the arm had other inputs then
        and the user accepted this; else empty.
    """

    row: str
    point: Overrides
    seed: int
    share: float
    config: dict[str, Any]
    made_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    known_as: str = ""

    @functools.cached_property
    def key(self) -> str:
        """16 hex digits of a hash of the config and of the inputs in `made_of`.

        The hash depends on the content behind the paths of the config, and not on the paths.
        """
        return self.known_as or digest([self.config_hash, dict(self.made_of)])[:16]

    @functools.cached_property
    def config_hash(self) -> str:
        """16 hex digits of the SHA-256 of the config without the folders of paths (`portable`)."""
        return digest(portable(self.config))[:16]


def make_arm(
    base: ml_collections.ConfigDict,
    row: str,
    overrides: Overrides,
    point: Overrides,
    seed: int,
    share: float = 1.0,
) -> Arm:
    """An arm from the base config, the overrides of a row, and the overrides of a point.

    Overrides of the point take precedence over overrides of the row.

    Args:
      base: config that the overrides change.
      row: name of the row.
      overrides: overrides of the row.
      point: overrides of the tuned hyper-parameters.
      seed: seed of the run.
      share: share of the full training length, in (0, 1].

    Raises:
      UserError: unknown config key, or a value of the wrong type.
    """
    config = apply_overrides(base, {**overrides, **point, "seed": seed, "data.test": ""})
    if share != 1.0:
        if config.train.steps:
            config.train.steps = max(1, round(config.train.steps * share))
        else:
            config.train.epochs = config.train.epochs * share
    return Arm(row, dict(point), seed, share, config_lib.to_json(config))


_KINDS = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "True or False",
          "tuple": "a list", "list": "a list"}  # fmt: skip


def apply_overrides(
    base: ml_collections.ConfigDict, overrides: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A copy of a config with other values.

    Args:
      base: the config.
      overrides: values by dotted key, such as ``optimizer.learning_rate``.

    Raises:
      UserError: unknown config key, or a value of the wrong type.
    """
    config = base.copy_and_resolve_references()
    for key, value in overrides.items():
        node, parts = config, key.split(".")
        for depth, part in enumerate(parts):
            known = node.keys() if isinstance(node, config_dict.ConfigDict) else ()
            if part not in known:
                prefix = ".".join(parts[:depth]) + "." * bool(depth)
                meant = " or ".join(map(repr, meant_keys(key)[:3]))
                hint = nearest(prefix + part, [prefix + k for k in known])
                raise UserError(
                    f"no config key {key!r}.{f' Did you mean {meant}?' if meant else hint}"
                )
            if depth < len(parts) - 1:
                node = node[part]
        try:
            # These two fields may hold either text or a list of rules.
            with node.ignore_type() if key in ("scheme", "data.augment") else node.unlocked():
                node[parts[-1]] = value
        except TypeError as error:
            kind = type(node[parts[-1]]).__name__
            raise UserError(
                f"{key}={value!r}: expected {_KINDS.get(kind, kind)}, found "
                f"{_KINDS.get(type(value).__name__, type(value).__name__)}"
            ) from error
    return config

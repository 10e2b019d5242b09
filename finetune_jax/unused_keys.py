"""Keys that a config changes and that do nothing there, such as ``optimizer.b1`` with SGD."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from finetune_jax import config as config_lib
from finetune_jax.models import entry_of
from finetune_jax.schemes.plan import Plan
from finetune_jax.setup import Setup

_SOURCES = ("digits", "tfds", "folder", "csv", "hf")
_TASKS_WITHOUT_NECK = ("classification", "multilabel", "ordinal", "regression", "similarity")


@dataclasses.dataclass(frozen=True)
class _Facts:
    """The properties of a run that decide which keys the run reads."""

    setup: Setup

    @property
    def config(self) -> ml_collections.ConfigDict:
        return self.setup.config

    @property
    def source(self) -> str:
        """Prefix of the data source; "" for a source of another package."""
        prefix = self.config.data.source.partition(":")[0]
        return prefix if prefix in _SOURCES else ""

    @property
    def texts(self) -> bool:
        """Whether the model reads texts."""
        return entry_of(self.config.model.name).tokens

    def reads(self, *sources: str) -> bool:
        """Whether the data source is one of these; a source of another package may read any key."""
        return self.source in ("", *sources)

    def optimizer(self, name: str) -> bool:
        """Whether a phase has this optimizer."""
        return any((p.optimizer or self.config.optimizer.name) == name for p in self.setup.phases)

    def some_plan(self, holds: Callable[[Plan], Any]) -> bool:
        """Whether something holds for the plan of a phase."""
        return any(holds(phase.plan) for phase in self.setup.phases)

    @property
    def decays(self) -> bool:
        """Whether any leaf may have a weight decay."""
        own = any(phase.decay for phase in self.setup.phases)
        groups = self.some_plan(lambda plan: any(g.decay for g in plan.groups.values()))
        return bool(own or groups or self.config.optimizer.weight_decay)


_CACHE = tuple(f"prefix_cache.{key}" for key in ("bytes", "dir", "dir_bytes", "views"))
_PRETRAINED = ("name_map", "new_head", "head_init", "check_statistics", "resize")

_RULES: tuple[tuple[tuple[str, ...], Callable[[_Facts], Any], str], ...] = (
    (
        ("optimizer.momentum", "optimizer.nesterov"),
        lambda f: f.optimizer("sgd"),
        "only the optimizer 'sgd' reads it",
    ),
    (
        ("optimizer.nesterov",),
        lambda f: f.config.optimizer.momentum,
        "optimizer.momentum is 0",
    ),
    (
        ("optimizer.b1", "optimizer.b2"),
        lambda f: f.optimizer("adamw"),
        "only the optimizer 'adamw' reads it",
    ),
    (("decay_mask",), lambda f: f.decays, "optimizer.weight_decay is 0"),
    (("train.epochs",), lambda f: not f.config.train.steps, "train.steps is set"),
    (
        ("train.nan_limit",),
        lambda f: f.config.train.on_nan != "stop",
        "only train.on_nan='skip' and 'back_up' read it",
    ),
    (
        ("data.data_dir", "data.prepare"),
        lambda f: f.reads("tfds", "hf"),
        "only the data sources tfds and hf read it",
    ),
    (
        ("data.image_column", "data.label_column", "data.mask_column"),
        lambda f: f.reads("tfds", "csv", "hf"),
        "only the data sources tfds, csv and hf read it",
    ),
    (
        ("data.label_column", "data.label_kind", "data.label_sep", "data.label_until"),
        lambda f: not f.config.data.label_columns,
        "data.label_columns is set",
    ),
    (
        ("data.label_columns",),
        lambda f: f.reads("tfds", "csv", "hf"),
        "only the data sources tfds, csv and hf read it",
    ),
    (
        ("data.label_kind", "data.label_sep", "data.label_until"),
        lambda f: f.reads("csv", "hf"),
        "only the data sources csv and hf read it",
    ),
    (
        ("data.label_sep",),
        lambda f: f.config.data.label_kind == "classes",
        "only data.label_kind='classes' reads it",
    ),
    (
        ("data.split_seed",),
        lambda f: f.reads("folder", "csv", "hf"),
        "only the data sources folder, csv and hf read it",
    ),
    (
        tuple(f"data.csv.{key}" for key in ("sep", "header", "encoding", "quoting", "extra")),
        lambda f: f.reads("csv"),
        "only the data source csv reads it",
    ),
    (
        ("data.on_bad_image",),
        lambda f: f.reads("folder", "csv", "hf") and not f.texts,
        "only images of the data sources folder, csv and hf can be left out",
    ),
    (
        ("data.max_pixels",),
        lambda f: f.source != "digits" and not f.texts,
        "no image file is decoded",
    ),
    (
        tuple(f"data.{key}" for key in ("image_size", "interpolation", "mean", "std", "crop")),
        lambda f: not f.texts,
        "the model reads texts",
    ),
    (
        ("data.tokenizer", "data.max_tokens", "data.text_columns"),
        lambda f: f.texts,
        "the model reads images",
    ),
    (
        ("task.neck",),
        lambda f: f.config.task.name not in _TASKS_WITHOUT_NECK,
        "only the task 'segmentation' reads it",
    ),
    (
        tuple(f"pretrained.{key}" for key in _PRETRAINED),
        lambda f: f.config.pretrained.path,
        "pretrained.path is empty",
    ),
    (_CACHE, lambda f: f.config.prefix_cache.enabled, "prefix_cache.enabled is False"),
    (
        _CACHE,
        lambda f: f.some_plan(lambda plan: plan.prefix),
        "the scheme freezes no stage before the first one that trains",
    ),
    (("prefix_cache.dir_bytes",), lambda f: f.config.prefix_cache.dir, "prefix_cache.dir is empty"),
    (("prefix_cache.views",), lambda f: f.config.data.augment, "data.augment is empty"),
    (("frozen_dropout",), lambda f: f.config.model.dropout, "model.dropout is 0"),
    (
        ("batch_norm",),
        lambda f: f.setup.abstract.get("batch_stats"),
        "the model has no BatchNorm",
    ),
    (
        ("model.frozen_dtype",),
        lambda f: f.some_plan(lambda plan: not all(leaf.trains for leaf in plan.leaves)),
        "the scheme freezes nothing",
    ),
    (
        ("checkpoint.metric",),
        lambda f: f.config.checkpoint.keep_best and f.config.data.validation,
        "no best checkpoint is kept",
    ),
    (("checkpoint.keep_best",), lambda f: f.config.data.validation, "data.validation is empty"),
    (
        ("artifact.merge",),
        lambda f: f.some_plan(lambda plan: plan.deltas),
        "the scheme adds no parameters beside the model's",
    ),
)
"""(keys, whether they are read, reason why they are not). The first rule that applies counts."""


def unused_keys(setup: Setup) -> Iterator[str]:
    """Yields a line for each key of the config that is not at its default and does nothing.

    The lines are remarks and not errors, because one config may serve several settings: an ablation
    over optimizers sets the momentum of SGD and the decay rates of AdamW.
    """
    # As JSON, because a config that was read from a file has lists in place of tuples.
    own, default = (
        ml_collections.ConfigDict(config_lib.to_json(config))
        for config in (setup.config, config_lib.default())
    )
    changed = {key: own[key] for key in config_lib.keys(own) if own[key] != default[key]}
    facts = _Facts(setup)
    said: set[str] = set()
    for keys, is_read, why in _RULES:
        for key in keys:
            if key in changed and key not in said and not is_read(facts):
                said.add(key)
                yield f"{key}={changed[key]!r} does nothing in this config: {why}"

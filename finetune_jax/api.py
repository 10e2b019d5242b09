"""The Python API: the operations of the commands, for notebooks and scripts.

`finetune_jax` re-exports all names of this module. The verbs are `fit` and `score`, because
``finetune_jax.train`` and ``finetune_jax.evaluate`` are the modules of the commands. An import
``X as X`` marks a name that `finetune_jax` re-exports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from finetune_jax import cli
from finetune_jax.artifact import Artifact as Artifact
from finetune_jax.base_variables import load_variables
from finetune_jax.errors import UserError as UserError
from finetune_jax.errors import nearest
from finetune_jax.evaluation.evaluator import open_evaluator, open_run
from finetune_jax.reporting.plan_tables import plan_tables
from finetune_jax.schemes import Plan as Plan
from finetune_jax.setup import Setup as Setup
from finetune_jax.setup import open_setup as open_setup
from finetune_jax.training import loop
from finetune_jax.training.metrics_writer import OnMetrics
from finetune_jax.training.plan_cost import plan_figures


def load_config(name: str, overrides: Mapping[str, Any] | None = None) -> ml_collections.ConfigDict:
    """Loads a config and sets some of its keys.

    Args:
      name: name of a config that ships with the package (``quickstart``), or path of a config file;
        the text after a colon is the argument of the file's ``get_config``.
      overrides: values by dotted key, such as ``{"train.steps": 100}``.

    Returns:
      The locked config. Its keys are listed in ``docs/config.md``.

    Raises:
      UserError: there is no such config or key, or a value has the wrong type.
    """
    config = cli.load_config(name)
    for key, value in (overrides or {}).items():
        _set(config, key, value)
    return config


def _set(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets one dotted key of a config."""
    *parents, last = key.split(".")
    parent = config
    for name in parents:
        parent = _child(parent, name, key)
    _child(parent, last, key)
    try:
        parent[last] = value
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error


def _child(node: Any, name: str, key: str) -> Any:
    """Returns `node[name]`; raises UserError if the dotted `key` does not exist."""
    if not isinstance(node, ml_collections.ConfigDict):
        raise UserError(f"no config key {key!r}: {name!r} is below a value")
    if name not in node:
        raise UserError(f"no config key {key!r}.{nearest(name, node.keys())}")
    return node[name]


def load_weights(setup: Setup) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the pretrained weights of a setup; see `finetune_jax.base_variables.load_variables`.

    Returns:
      (variables, manifest): the variables are ``{"params": …, "batch_stats": …}``; the manifest
      says what became of every tensor of the weight file.
    """
    return load_variables(setup)


def plan_cost(setup: Setup) -> dict[str, Any]:
    """Compiles the train step of a setup and of full fine-tuning, and returns the cost of both.

    No data and no weights are read.

    Returns:
      ``trainable_params``, ``frozen_params``, ``flops_step``, ``flops_step_full`` and the other
      figures of `finetune_jax.training.plan_cost.plan_figures`.
    """
    return plan_figures(setup)


def plan_table(setup: Setup) -> str:
    """Returns the tables of ``finetune-jax plan``: every leaf, every stage, and the cost."""
    return plan_tables(plan_cost(setup), setup)


def fit(
    setup: Setup,
    workdir: str | Path,
    on_metrics: OnMetrics | None = None,
    *,
    accept_changed_data: bool = False,
) -> dict[str, Any]:
    """Trains to the end of the run, and continues an interrupted run from its checkpoint.

    Args:
      setup: the setup.
      workdir: folder of the run; see `finetune_jax.training.loop.train` for its files.
      on_metrics: called with (step, split, metrics) for every line of ``metrics.jsonl``: split
        ``train`` every ``log.every_steps`` steps, ``validation`` at every evaluation, and ``test``
        at the end.
      accept_changed_data: whether to continue a run although its data, tokenizer, weights or
        teacher changed since; the differences are recorded.

    Returns:
      The content of ``result.json``: scores, cost and audit counts.

    Raises:
      UserError: bad input.
      finetune_jax.training.audit.AuditError: a frozen leaf changed or a trainable leaf did not.
    """
    return loop.train(setup, Path(workdir), on_metrics, accept_changed_data=accept_changed_data)


def score(
    subject: str | Path | ml_collections.ConfigDict,
    split: str = "test",
    *,
    base: str = "",
    data_dir: str = "",
    data_source: str = "",
    batch_size: int = 0,
    allow_imports: Iterable[str] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Scores a run, or a pretrained weight file as it is, on one split.

    Args:
      subject: folder of a finished run, or a config whose ``pretrained.path`` is scored.
      split: ``train``, ``validation`` or ``test``.
      base: weight file, needed for a run with a delta artifact.
      data_dir: replaces ``data.data_dir`` of the run's config.
      data_source: replaces ``data.source`` of the run's config, for data that was moved.
      batch_size: replaces ``eval.batch_size`` of the run's config; 0 keeps it.
      allow_imports: packages whose code the run's artifact may run; see `Artifact.load`.
      trust: whether the files and addresses that the run's config names are read although the user
        has not trained the run on this machine.

    Returns:
      The scores of the task with their intervals, and ``n_scored``.

    Raises:
      UserError: not a finished run, a bad config, or a split that does not exist.
    """
    if isinstance(subject, ml_collections.ConfigDict):
        evaluator = open_evaluator(subject)
    else:
        evaluator = open_run(
            Path(subject),
            base=base,
            data_dir=data_dir,
            data_source=data_source,
            batch_size=batch_size,
            allow_imports=allow_imports,
            trust=trust,
        )
    return evaluator.scores(evaluator.observe(split))

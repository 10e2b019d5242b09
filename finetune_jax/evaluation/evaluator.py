"""A model with its weights, and the data of a config to evaluate it on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from finetune_jax import config as config_lib
from finetune_jax import identity
from finetune_jax.artifact import Artifact
from finetune_jax.artifact.providers import config_doors
from finetune_jax.base_variables import load_variables
from finetune_jax.data.augment import canonical, make_input_pipeline
from finetune_jax.data.batches import Encoder
from finetune_jax.data.cut_texts import cut_texts
from finetune_jax.data.examples import Examples
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Source
from finetune_jax.data.text import TextPreprocess
from finetune_jax.deltas import Adapted
from finetune_jax.doors import require_allowed
from finetune_jax.errors import UserError, nearest
from finetune_jax.evaluation.scores import forward_all, observe
from finetune_jax.evaluation.step import make_eval_step, make_forward
from finetune_jax.evaluation.trust import require_trust
from finetune_jax.files import read_json
from finetune_jax.mesh import put_batch, state_sharding, use_cpu_devices
from finetune_jax.metrics.probes import sample
from finetune_jax.models import StagedModel
from finetune_jax.progress import say
from finetune_jax.run_folders import require_run
from finetune_jax.setup import Setup, open_setup
from finetune_jax.tasks import Task, require_classification
from finetune_jax.tasks.relabel import host_part

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluates a model on the splits of a config.

    Attributes:
      setup: setup of the config; its scheme and its training settings are not used.
      model: staged model, with the deltas of the artifact.
      variables: all variables of the model, on the devices.
      task: the task, with the constants that the training run fitted.
      preprocess: preprocessing of the training run.
      artifact: the artifact that the model comes from; None for a pretrained weight file.
    """

    setup: Setup
    model: Adapted | StagedModel
    variables: dict[str, Any]
    task: Task
    preprocess: Preprocess
    artifact: Artifact | None = None

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The config."""
        return self.setup.config

    @property
    def source(self) -> Source:
        """The config's data source."""
        return self.setup.source

    @property
    def batch_size(self) -> int:
        """Examples per batch, ``eval.batch_size``."""
        return self.config.eval.batch_size

    @functools.lru_cache(maxsize=4)  # noqa: B019  a command has one or two evaluators, until it ends
    def examples(self, split: str) -> Examples:
        """The examples of ``train``, ``validation`` or ``test``.

        Raises:
          UserError: unknown split, or a split that the config leaves empty.
        """
        require_split(self.config, split)
        examples = self.source.read(self.config.data[split])
        given = self.preprocess
        line = cut_texts(given, examples, examples) if isinstance(given, TextPreprocess) else ""
        if line:
            say(f"{split}: {line}")
        return examples

    @property
    def encode(self) -> Encoder:
        """Function of an example of `source` to the arrays of a batch: inputs and targets."""
        return self.encoder_of(self.source)

    def encoder_of(self, source: Source) -> Encoder:
        """Function of an example of any source to the arrays of a batch.

        Raises:
          UserError: the source has a class that the model does not know.
        """
        what = f"data.source={source.name}"
        return Encoder((self.preprocess, host_part(self.task, source.class_names, what)))

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts a host batch on all devices."""
        return put_batch(batch, self.setup.mesh)

    @functools.cached_property
    def eval_step(self) -> Callable[..., Any]:
        """Jitted function of (variables, batch) to what the task observes of each example."""
        augment = canonical(self.config.data.augment) if self.task.random_inputs else ""
        return _eval_step(self.model, self.task, self.preprocess, augment)

    def observe(
        self, split: str, encode: Callable[[dict[str, Any]], Any] | None = None
    ) -> dict[str, np.ndarray]:
        """What the task observes of every example of a split, in its order.

        Args:
          split: ``train``, ``validation`` or ``test``.
          encode: replaces the property `encode`; called once per example, in order.
        """
        return self.observe_examples(self.examples(split), encode)

    def observe_examples(
        self,
        examples: Examples,
        encode: Callable[[dict[str, Any]], Any] | None = None,
        place: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """What the task observes of every example, which need not be of a split of the config.

        Args:
          examples: the examples.
          encode: replaces the property `encode`; called once per example, in order.
          place: replaces the method `place`.
        """
        return observe(
            self.eval_step,
            self.variables,
            examples,
            encode or self.encode,
            batch_size=self.batch_size,
            place=place or self.place,
            # Another function may keep a state, which worker processes would not share.
            workers=self.config.data.workers if isinstance(encode or self.encode, Encoder) else 0,
        )

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """The task's report, and ``n_scored``, the number of examples."""
        return {**self.task.report(observed), "n_scored": len(next(iter(observed.values())))}

    def features(self, split: str, *, limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Returns (features f32[n, width] that enter the head, labels i[n]).

        Args:
          split: ``train``, ``validation`` or ``test``.
          limit: number of examples at most, which are a fixed random sample; 0 for all examples.

        Raises:
          UserError: the task is not single-label classification.
        """
        require_classification(self.task)
        examples = self.examples(split)
        forward = _feature_step(self.model, self.preprocess)
        return forward_all(
            lambda placed: (forward(self.variables, placed), placed["label"]),
            examples,
            self.encode,
            batch_size=self.batch_size,
            place=self.place,
            indices=sample(len(examples), limit),
        )


# Evaluators share compiled programs if their models have one structure, as in an ablation.
@functools.lru_cache(maxsize=16)
def _eval_step(
    model: Adapted | StagedModel, task: Task, preprocess: Preprocess, augment: str
) -> Callable[..., Any]:
    return jax.jit(make_eval_step(model, task, make_input_pipeline(preprocess, augment)))


@functools.lru_cache(maxsize=16)
def _feature_step(model: Adapted | StagedModel, preprocess: Preprocess) -> Callable[..., Any]:
    return jax.jit(make_forward(model, preprocess.device, stop="head"))


def open_evaluator(
    config: ml_collections.ConfigDict, artifact: Artifact | None = None
) -> Evaluator:
    """Returns the evaluator of an artifact, or of the config's pretrained weight file.

    All devices share each batch; they need not be the devices of the training run.

    Args:
      config: names the data; without an artifact also the model and its weight file.
      artifact: the model.

    Raises:
      UserError: bad config, or weights whose head does not fit the data.
    """
    use_cpu_devices(config.mesh.cpu_devices)
    setup = open_setup(_for_evaluation(config))
    if artifact is not None:
        sharding = state_sharding(setup.mesh, artifact.variables)
        return Evaluator(
            setup,
            artifact.model,
            # Put on the devices here, or each batch would transfer the variables again.
            jax.device_put(artifact.variables, sharding),
            artifact.task,
            artifact.preprocess,
            artifact,
        )
    variables, manifest = load_variables(setup)
    fresh = [r["leaf"] for r in manifest["rows"] if r["decision"] == "reinitialised"]
    if setup.task.start_head(variables["params"]["head"]) is not None:
        fresh = [leaf for leaf in fresh if not leaf.startswith("params/head/")]
    if fresh or not config.pretrained.path:
        raise UserError(
            "there are no trained weights to score: "
            + (f"{', '.join(fresh)} would be random" if fresh else "set pretrained.path")
        )
    return Evaluator(setup, setup.model, variables, setup.task, setup.preprocess)


def _for_evaluation(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with neutral training settings, on all devices."""
    devices = jax.device_count()
    if config.eval.batch_size % devices:
        raise UserError(
            f"eval.batch_size: {config.eval.batch_size} images do not divide over {devices} "
            f"devices; give a multiple of {devices} with --batch_size"
        )
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.scheme = "full"
    config.artifact = config_lib.default().artifact
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.train.accumulate, config.train.batch_size = 1, devices
    return config


def open_run(
    workdir: Path,
    *,
    base: str = "",
    data_dir: str = "",
    data_source: str = "",
    batch_size: int = 0,
    allow_imports: Iterable[str] = (),
    trust: bool = False,
) -> Evaluator:
    """Returns the evaluator of a finished run.

    Args:
      workdir: folder of the run.
      base: weight file of the base of a ``delta`` artifact.
      data_dir: replaces ``data.data_dir`` of the run; empty keeps it.
      data_source: replaces ``data.source`` of the run, whose data was moved; empty keeps it.
      batch_size: replaces ``eval.batch_size`` of the run; 0 keeps it.
      allow_imports: top-level packages whose code may run, for a run whose config or artifact names
        objects of other packages; see `Artifact.load`.
      trust: whether files and addresses that the config names are read although the user has not
        trained the run on this machine; see `evaluation.trust`.

    Raises:
      UserError: not a finished run, a run that is not trusted, or an error of `Artifact.load` or
        `open_evaluator`.
    """
    require_run(workdir)
    path = workdir / "config.json"
    values = read_json(path)
    config = _config_of(values, path)
    require_allowed(config_doors(config), allow_imports, str(workdir / "config.json"))
    given = {"data.data_dir": data_dir, "data.source": data_source}
    require_trust(values, path, trust, tuple(key for key, value in given.items() if value))
    override(config, data_dir=data_dir, data_source=data_source, batch_size=batch_size)
    # This comes before the artifact is read, because reading uses a device.
    use_cpu_devices(config.mesh.cpu_devices)
    artifact = Artifact.load(workdir, base, allow_imports)
    with source_may_have_moved(config.data.source, data_source):
        evaluator = open_evaluator(config, artifact)
    if lines := changed_data(evaluator):
        say(f"{workdir}: this is not the data that the run was trained on: {'; '.join(lines)}")
        _say_drawn(evaluator.source, config, data_source)
    return evaluator


def _say_drawn(source: Source, config: ml_collections.ConfigDict, given: str) -> None:
    """Says that splits of a source which the user gave for other data are drawn at random."""
    if not given or not source.drawn:
        return
    sizes = ", ".join(f"{count} of {split}" for split, count in source.splits.items())
    every = "+".join(source.splits)
    say(
        f"{given}: has no splits of its own, so that its examples are drawn by data.split_seed="
        f"{config.data.split_seed}: {sizes}; --shifts='{given}@{every}' scores all of them"
    )


def changed_data(evaluator: Evaluator) -> list[str]:
    """Lines about differences of the config's data from the training data of the artifact."""
    known = evaluator.artifact.card.get("made_of", {}) if evaluator.artifact else {}
    return identity.differences(known, {"data": evaluator.source.identity})


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a run's folder; UserError for another folder."""
    path = workdir / "config.json"
    require_run(workdir)
    return _config_of(read_json(path), path)


def _config_of(values: dict[str, Any], path: Path) -> ml_collections.ConfigDict:
    try:
        return config_lib.from_json(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def require_split(config: ml_collections.ConfigDict, split: str) -> None:
    """Raises UserError for an unknown split, or a split that the config leaves empty."""
    if split not in SPLITS:
        raise UserError(f"--split: unknown split {split!r}.{nearest(split, SPLITS)}")
    if not config.data[split]:
        others = " or ".join(f"--split={name}" for name in SPLITS if config.data[name])
        raise UserError(
            f"--split={split}: the config has no {split} split, data.{split} is empty; expected "
            f"{others or 'a config with data'}"
        )


def best_split(config: ml_collections.ConfigDict) -> str:
    """The first of test, validation and train that the data has; says so if it is not test."""
    split = next((name for name in ("test", "validation") if config.data[name]), "train")
    if split != "test":
        say(f"there is no test split (data.test is empty): {split} is scored; see --split")
    return split


@contextlib.contextmanager
def source_may_have_moved(source: str, given: str) -> Iterator[None]:
    """Adds to an error about ``data.source`` how to give the place of data that was moved.

    Args:
      source: ``data.source`` of the run.
      given: the source that the user gave in its place; with one, errors stay as they are.
    """
    try:
        yield
    except UserError as error:
        if given or not str(error).startswith("data.source"):
            raise
        kind = source.partition(":")[0]
        raise UserError(
            f"{error} If the data of the run was moved, give its place: --data_source={kind}:PATH"
        ) from None


def override(
    config: ml_collections.ConfigDict, *, data_dir: str, data_source: str, batch_size: int
) -> None:
    """Sets keys of ``data`` and ``eval.batch_size``, unless the value is empty or 0."""
    if data_source:
        config.data.source = data_source
    if data_dir:
        config.data.data_dir = data_dir
    if batch_size:
        config.eval.batch_size = batch_size


def score(
    config: ml_collections.ConfigDict, split: str, artifact: Artifact | None = None
) -> dict[str, Any]:
    """Scores an artifact, or the config's pretrained weight file, on a split of the config's data.

    Raises:
      UserError: bad config, unknown split, or weights whose head does not fit the data.
    """
    evaluator = open_evaluator(config, artifact)
    return evaluator.scores(evaluator.observe(split))

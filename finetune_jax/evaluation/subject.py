"""What is evaluated: a model with its weights, and the data of a config to score it on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np

from finetune_jax.data.augment import canonical, make_input_pipeline
from finetune_jax.data.batches import Encoder
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.data.sources import Examples, Source
from finetune_jax.errors import UserError, nearest
from finetune_jax.evaluation.scores import forward_all, observe
from finetune_jax.evaluation.step import make_eval_step, make_forward
from finetune_jax.metrics.probes import sample
from finetune_jax.tasks import Task, require_classification

if TYPE_CHECKING:
    from finetune_jax.artifact import Artifact
    from finetune_jax.setup import Setup

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model with its weights, and the data to score it on.

    Attributes:
      setup: of the config, whose scheme and training settings no longer matter.
      model: staged module, with the artifact's deltas.
      variables: whole variables.
      task: fitted.
      preprocess: the training run's.
      artifact: that it comes from; None for a weight file as it is.
    """

    setup: Setup
    model: Any
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
        """Of every pass."""
        return self.config.eval.batch_size

    @functools.lru_cache(maxsize=4)  # noqa: B019  a command holds one or two subjects
    def examples(self, split: str) -> Examples:
        """The examples of ``train``, ``validation`` or ``test``.

        Raises:
          UserError: unknown split, or one the config leaves empty.
        """
        require_split(self.config, split)
        return self.source.read(self.config.data[split])

    @property
    def encode(self) -> Encoder:
        """Of a source's example to what a batch has of it: inputs and targets."""
        return Encoder((self.preprocess, self.task))

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts a host batch on all devices."""
        from finetune_jax.mesh import put_batch

        return put_batch(batch, self.setup.mesh)

    @functools.cached_property
    def eval_step(self) -> Callable[..., Any]:
        """Compiled (variables, batch) to what the task observes."""
        augment = canonical(self.config.data.augment) if self.task.random_inputs else ""
        return _eval_step(self.model, self.task, self.preprocess, augment)

    def observe(
        self, split: str, encode: Callable[[dict[str, Any]], Any] | None = None
    ) -> dict[str, np.ndarray]:
        """What the task observes of every example of a split, in its order.

        Args:
          split: ``train``, ``validation`` or ``test``.
          encode: in place of `encode`; called once per example, in order.
        """
        return self.observe_examples(self.examples(split), encode)

    def observe_examples(
        self,
        examples: Examples,
        encode: Callable[[dict[str, Any]], Any] | None = None,
        place: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """`observe` of examples that need not be the config's; `place` stands in for its own."""
        return observe(
            self.eval_step,
            self.variables,
            examples,
            encode or self.encode,
            batch_size=self.batch_size,
            place=place or self.place,
            # Any other encode may keep what it has seen, which processes would not share.
            workers=self.config.data.workers if isinstance(encode or self.encode, Encoder) else 0,
        )

    def scores(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """The task's report, and ``n_scored``."""
        return {**self.task.report(observed), "n_scored": len(next(iter(observed.values())))}

    def features(self, split: str, *, limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """What enters the head, f32[n, width], and labels i[n]; see `require_classification`.

        Args:
          split: ``train``, ``validation`` or ``test``.
          limit: how many examples at most, a fixed random sample; 0 for all.
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


# Many subjects of one structure, such as the arms of an ablation, are compiled for once.
@functools.lru_cache(maxsize=16)
def _eval_step(model: Any, task: Task, preprocess: Preprocess, augment: str) -> Any:
    return jax.jit(make_eval_step(model, task, make_input_pipeline(preprocess, augment)))


@functools.lru_cache(maxsize=16)
def _feature_step(model: Any, preprocess: Preprocess) -> Any:
    return jax.jit(make_forward(model, preprocess.device, stop="head"))


def open_subject(config: ml_collections.ConfigDict, artifact: Artifact | None = None) -> Subject:
    """An artifact, or the config's pretrained file, on the config's data.

    The devices need not be those it was trained on: all there are share each batch.

    Raises:
      UserError: bad config, or weights whose head does not fit the data.
    """
    from finetune_jax.config import default
    from finetune_jax.mesh import state_sharding, use_cpu_devices
    from finetune_jax.setup import load_variables, open_setup

    use_cpu_devices(config.mesh.cpu_devices)
    devices = jax.device_count()
    if config.eval.batch_size % devices:
        raise UserError(
            f"eval.batch_size: {config.eval.batch_size} images do not divide over {devices} "
            f"devices; give a multiple of {devices} with --batch_size"
        )
    # How it trained does not matter any more.
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.scheme = "full"
    config.artifact = default().artifact
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.train.accumulate, config.train.batch_size = 1, devices
    setup = open_setup(config)
    if artifact is not None:
        return Subject(
            setup,
            artifact.model,
            # Once for all batches.
            jax.device_put(artifact.variables, state_sharding(setup.mesh, artifact.variables)),
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
    return Subject(setup, setup.model, variables, setup.task, setup.preprocess)


def open_run(workdir: Path, *, base: str = "", data_dir: str = "", batch_size: int = 0) -> Subject:
    """The subject of a finished run's folder.

    Args:
      workdir: the folder.
      base: weight file of a delta artifact.
      data_dir: in place of the run's, if it is given.
      batch_size: likewise.

    Raises:
      UserError: not a finished run, or what `open_subject` says.
    """
    from finetune_jax.artifact import load_artifact
    from finetune_jax.mesh import use_cpu_devices

    config = read_config(workdir)
    override(config, data_dir=data_dir, batch_size=batch_size)
    # Before the artifact: reading it uses a device.
    use_cpu_devices(config.mesh.cpu_devices)
    # The artifact decides; the run's weight file need not be there any more.
    return open_subject(config, load_artifact(workdir, base))


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a run's folder; UserError if it is not one."""
    from finetune_jax import config as config_lib
    from finetune_jax.files import read_json

    return config_lib.from_json(read_json(workdir / "config.json"))


def require_split(config: ml_collections.ConfigDict, split: str) -> None:
    """UserError for an unknown split, or one that the config leaves empty."""
    if split not in SPLITS:
        raise UserError(f"--split: unknown split {split!r}.{nearest(split, SPLITS)}")
    if not config.data[split]:
        raise UserError(f"--split={split}: the config has no {split} split, data.{split} is empty")


def override(config: ml_collections.ConfigDict, *, data_dir: str, batch_size: int) -> None:
    """Puts into a config what a command was told otherwise."""
    if data_dir:
        config.data.data_dir = data_dir
    if batch_size:
        config.eval.batch_size = batch_size


def score(config: Any, split: str, artifact: Artifact | None = None) -> dict[str, Any]:
    """Scores an artifact, or the config's pretrained file, on a split of the config's data.

    Raises:
      UserError: bad config, unknown split, or weights whose head does not fit the data.
    """
    subject = open_subject(config, artifact)
    return subject.scores(subject.observe(split))

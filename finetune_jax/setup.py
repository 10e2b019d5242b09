"""From a config to a setup: data source, task, model, phases and mesh, in a fixed order."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from finetune_jax import config as config_lib
from finetune_jax import tasks, tree
from finetune_jax.data.augment import canonical, check_targets, make_input_pipeline
from finetune_jax.data.batches import Encoder
from finetune_jax.data.class_map import open_configured
from finetune_jax.data.classes import number_of
from finetune_jax.data.preprocess import (
    ImagePairPreprocess,
    ImagePreprocess,
    Preprocess,
    require_vocabulary,
)
from finetune_jax.data.sources import Source, require_column
from finetune_jax.data.splits import resolve_split
from finetune_jax.data.text import TextPreprocess
from finetune_jax.deltas import Delta, unmergeable
from finetune_jax.errors import UserError, about, nearest
from finetune_jax.hosts import primary_first
from finetune_jax.mesh import make_mesh, use_cpu_devices
from finetune_jax.metrics.probes import parse_probes
from finetune_jax.models import StagedModel, build, entry_of, initial_variables
from finetune_jax.pretrained.adapter import open_adapter
from finetune_jax.pretrained.sizes import settle_model
from finetune_jax.pretrained.sources import resolve
from finetune_jax.schemes import Phase, Plan, lengths, print_phases, resolve_phases
from finetune_jax.schemes.phases import formats_of
from finetune_jax.schemes.schedules import parse_schedule
from finetune_jax.tasks import Task, require_classification
from finetune_jax.tasks.relabel import host_part
from finetune_jax.tasks.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Setup:
    """A resolved config. No image and no weight has been read yet.

    Attributes:
      config: the validated config.
      source: the data source; only its metadata has been read.
      task: the task, with the class names of the data source.
      preprocess: the deterministic preprocessing.
      model: the staged module.
      abstract: variables of the model, without deltas, as shape structs.
      phases: the phases of `config.scheme`.
      mesh: the mesh of all devices.
      teacher: the teacher that ``task.teacher`` names, after `training.teacher` has loaded it.
    """

    config: ml_collections.ConfigDict
    source: Source
    task: Task
    preprocess: Preprocess
    model: StagedModel
    abstract: dict[str, Any]
    phases: tuple[Phase, ...]
    mesh: Mesh
    teacher: Teacher | None = None

    @property
    def encode(self) -> Encoder:
        """Turns an example of the data source into arrays of a batch: inputs and targets."""
        what = f"data.source={self.source.name}"
        return Encoder((self.preprocess, host_part(self.task, self.source.class_names, what)))

    @property
    def scheme(self) -> str:
        """The canonical text of the scheme with all its phases."""
        return print_phases(self.phases)

    @property
    def plan(self) -> Plan:
        """The plan of the last phase. Most runs have one phase only."""
        return self.phases[-1].plan

    @property
    def trainable(self) -> frozenset[str]:
        """Leaf paths that at least one phase trains."""
        return frozenset(p for phase in self.phases for p in phase.plan.trainable)

    def initial_variables(self, stages: Collection[str] | None = None) -> dict[str, Any]:
        """Returns random variables, without deltas, drawn from ``config.seed``.

        Args:
          stages: see `models.initial_variables`.
        """
        return initial_variables(self.model, self.preprocess.size, self.config.seed, stages=stages)

    def examples(self, name: str) -> int:
        """Number of examples of ``train``, ``validation`` or ``test``; 0 for one that is empty.

        Bad images that a run leaves out are counted, because no image has been read.

        Raises:
          UserError: the config names a split that the source does not have.
        """
        text = self.config.data[name]
        ranges = resolve_split(text, self.source.splits) if text else []
        return sum(stop - start for _, start, stop in ranges)

    def phase_steps(self, train_examples: int) -> list[int]:
        """Returns the steps of each phase for a training split of `train_examples` examples."""
        config = self.config.train
        per_epoch = train_examples / config.batch_size
        total = config.steps or max(1, round(config.epochs * per_epoch))
        return lengths(self.phases, total, per_epoch)


def open_setup(config: ml_collections.ConfigDict) -> Setup:
    """Resolves a config into a setup.

    The order is fixed, because each step needs the result of an earlier step: 1. validation of the
    values, 2. devices, 3. mesh, 4. metadata of the data source, 5. the name of the model with its
    sizes, which may be those of the weight file, 6. preprocessing, 7. task, 8. model, 9. abstract
    variables, 10. phases with their plans. Weights and surgery (`base_variables`), train state and
    restore (`training.loop`) follow later.

    Raises:
      UserError: anything in the config is wrong; nothing has been compiled yet, and only a model of
        texts or one without sizes of its own needs a download.
    """
    config_lib.validate(config)
    use_cpu_devices(config.mesh.cpu_devices)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    _check_batch_sizes(config)
    labels = tasks.kind_of(config.task.name).labels
    source = primary_first(lambda: open_configured(config.data, labels))
    config = _without_missing(config, source)
    config = primary_first(lambda: settle_model(config))  # may need a download
    preprocess = _preprocess(config, source)
    _check_columns(source, preprocess, config.data.label_column)
    _check_order(config, source)
    task = tasks.create(config.task, source, preprocess)
    for target, column in (("label", "label"), ("class_map", "mask")):
        if target in task.abstract(1):
            require_column(source, column, f"data.{column}_column")
    # The task refuses labels that are names if it needs numbers.
    host_part(task, source.class_names, f"data.source={source.name}")
    _check_task(config, task, preprocess)
    task, model = _model(config, task, preprocess)
    abstract = initial_variables(model, preprocess.size, stages=())
    _check_copied_head(config, task)
    phases = _phases(config, model, abstract)
    setup = Setup(config, source, task, preprocess, model, abstract, phases, mesh)
    if len(phases) > 1 and config.data.train:
        setup.phase_steps(setup.examples("train"))
    return setup


def _without_missing(
    config: ml_collections.ConfigDict, source: Source
) -> ml_collections.ConfigDict:
    """The config without the splits that its data does not have."""
    if not source.missing:
        return config
    settled = config.copy_and_resolve_references()
    for name in source.missing:
        settled.data[name] = ""
    config_lib.validate(settled)
    return settled


def _check_batch_sizes(config: ml_collections.ConfigDict) -> None:
    """Raises UserError if a batch cannot be divided over devices and micro-batches."""
    devices, problems = jax.device_count(), []
    for key in ("train.batch_size", "eval.batch_size"):
        micro = config.train.accumulate if key.startswith("train") else 1
        size, parts = config[key], devices * micro
        if size % parts:
            lower, higher = size // parts * parts, -(-size // parts) * parts
            nearest_sizes = " or ".join(f"--config.{key}={n}" for n in (lower, higher) if n)
            over = f"{devices} devices" + (f" x {micro} micro-batches" if micro > 1 else "")
            problems.append(
                f"{key}: {size} images do not divide over {over}; sizes that do: {nearest_sizes}"
            )
    if problems:
        raise UserError("\n".join(problems))


def _check_task(config: ml_collections.ConfigDict, task: Task, preprocess: Preprocess) -> None:
    """Raises UserError if a metric, an augmentation or a probe does not fit the task."""
    if config.checkpoint.metric not in ("", task.metric, "loss"):
        known = nearest(config.checkpoint.metric, (task.metric, "loss"))
        raise UserError(f"checkpoint.metric: unknown score {config.checkpoint.metric!r}.{known}")
    with about("data.augment"):
        make_input_pipeline(preprocess, config.data.augment)
        check_targets(config.data.augment, task.abstract(1))
    if task.needs_augment and not canonical(config.data.augment):
        raise UserError(
            f"data.augment: {task.name} compares views of an image, and without augmentation all "
            f"views are equal; expected a text such as 'random_crop(pad=4) + flip', found ''"
        )
    with about("eval.probes"):
        probes = parse_probes(config.eval.probes)
    if probes:
        require_classification(task)


def _model(
    config: ml_collections.ConfigDict, task: Task, preprocess: Preprocess
) -> tuple[Task, StagedModel]:
    """Returns the task and the model with a head of the size that the task needs."""
    options = _model_options(config, preprocess)
    require_vocabulary(preprocess, build(config.model.name, 1, **options))
    if not task.head_size:
        task = task.for_features(_features(build(config.model.name, 1, **options), preprocess))
    model = build(config.model.name, task.head_size, **options)
    return task, task.adapt(model)


def _phases(
    config: ml_collections.ConfigDict, model: StagedModel, abstract: dict[str, Any]
) -> tuple[Phase, ...]:
    """Resolves the scheme, and checks the schedules and the merge that the config asks for."""
    with about("optimizer.schedule"):
        parse_schedule(config.optimizer.schedule, 1)
    with about("scheme"):
        phases = resolve_phases(
            config.scheme,
            model.stages,
            abstract["params"],
            abstract["batch_stats"],
            batch_norm=config.batch_norm,
            # Without dropout in the model both modes are equal, and "eval" lets the prefix be
            # cached.
            frozen_dropout=config.frozen_dropout if config.model.dropout else "eval",
            decay=config.decay_mask,
            deltas=_adapter_deltas(config, model, abstract),
        )
        for phase in phases:
            for schedule in (phase.schedule, *(g.schedule for g in phase.plan.groups.values())):
                if schedule:
                    parse_schedule(schedule, 1)
    if config.artifact.merge:
        stuck = sorted({d.kind for d in unmergeable(model, phases[-1].plan.deltas)})
        if stuck:
            raise UserError(
                f"artifact.merge: no kernel of the model can express {', '.join(stuck)}; set "
                f"artifact.merge to False"
            )
    if rules := config.artifact.quantize:
        formats_of(phases[-1].plan, rules, "artifact.quantize")
    if config.artifact.merge and phases[-1].plan.deltas and (rules or phases[-1].quantize):
        raise UserError(
            "artifact.merge: merged weights would be other weights than those that the run "
            "quantizes; set artifact.merge to False, or merge first and quantize the run's folder "
            "with finetune_jax.quantize"
        )
    return phases


def _adapter_deltas(
    config: ml_collections.ConfigDict, model: StagedModel, abstract: dict[str, Any]
) -> tuple[Delta, ...]:
    """The deltas of ``pretrained.adapter``, which are in place before the first phase."""
    source = config.pretrained.adapter
    family = entry_of(config.model.name).family
    found = primary_first(lambda: open_adapter(source, family, tree.flatten(abstract), model.sizes))
    return found.deltas if found else ()


def _check_columns(source: Source, preprocess: Preprocess, label: str) -> None:
    """Raises UserError if the model needs a column that the source lacks, or reads the labels.

    Args:
      source, preprocess: the data, and what the model reads of it.
      label: ``data.label_column``.
    """
    if isinstance(preprocess, TextPreprocess) and label in preprocess.columns:
        raise UserError(
            f"data.label_column: {label!r} is in data.text_columns, too, so the model would read "
            f"the label that it learns; expected another column of {source.name!r}"
            f"{': ' + ', '.join(source.columns) if source.columns else ''}"
        )
    key = "data.text_columns" if isinstance(preprocess, TextPreprocess) else "data.image_column"
    for column in preprocess.columns:
        require_column(source, column, key)


def _check_copied_head(config: ml_collections.ConfigDict, task: Task) -> None:
    """Raises UserError for a copy of the outputs of classes where outputs are not classes."""
    if config.pretrained.head_init == "copy" and len(task.class_names) != task.head_size:
        raise UserError(
            f"pretrained.head_init: 'copy' copies one output for each class that is in "
            f"pretrained.class_names, and the outputs of the task {task.name!r} are not classes; "
            f"expected '', 'zero' or 'lecun'"
        )


def _check_order(config: ml_collections.ConfigDict, source: Source) -> None:
    """Raises UserError for an ordinal task whose order of classes is only that of the alphabet."""
    names = source.class_names
    data = config.data
    ordered = data.class_order or data.classes or data.label_columns
    if config.task.name != "ordinal" or ordered:
        return
    if any(number_of(name) is None for name in names):
        raise UserError(
            f"task.name: an ordinal task needs the order of its classes, and their names are "
            f"no numbers; set data.class_order=({', '.join(map(repr, names[:8]))}) in the right "
            f"order, or data.classes to a file with one name per line in the right order"
        )


def _preprocess(config: ml_collections.ConfigDict, source: Source) -> Preprocess:
    """Returns the preprocessing; the config overrides the constants of the model."""
    entry, data = entry_of(config.model.name), config.data
    apart = tasks.kind_of(config.task.name).views == 2
    if entry.tokens:
        path = data.tokenizer or _tokenizer_beside(resolve(config.pretrained.path or "."))
        size, columns = data.max_tokens or entry.inputs.size, tuple(data.text_columns)
        return TextPreprocess.open(Path(path), size, columns, "apart" if apart else "joined")
    if source.pairs and not apart:
        raise UserError(
            f"task.name: {config.task.name} reads one image per example, and examples of "
            f"{source.name!r} have two images; expected 'similarity'"
        )
    own = entry.inputs
    return (ImagePairPreprocess if apart else ImagePreprocess)(
        size=data.image_size or own.size,
        mean=tuple(data.mean) or own.mean,
        std=tuple(data.std) or own.std,
        interpolation=data.interpolation or own.interpolation,
        crop=own.crop if data.crop < 0 else data.crop,
        channels=own.channels,
        max_pixels=data.max_pixels,
    )


def _tokenizer_beside(weights: Path) -> Path:
    """The tokenizer in the folder of a weight file; `weights` may be the folder itself."""
    inside, beside = weights / "tokenizer.json", weights.parent / "tokenizer.json"
    if inside.is_file() or not beside.is_file() and weights.is_dir():
        return inside
    return beside


def _model_options(config: ml_collections.ConfigDict, preprocess: Preprocess) -> dict[str, Any]:
    model = config.model
    return {
        "image_size": preprocess.size,
        "dtype": model.dtype,
        "remat": model.remat,
        "dropout": model.dropout,
        "head": model.head,
    }


def _features(model: StagedModel, preprocess: Preprocess) -> int:
    """Returns the width of the features that the head reads."""
    variables = initial_variables(model, preprocess.size, stages=())
    out = jax.eval_shape(
        lambda v, batch: model.apply(v, preprocess.device(batch), stop="head"),
        variables,
        preprocess.abstract(1),
    )
    return out.shape[-1]

"""Loads the teacher of a run: an artifact whose outputs the training loss reads.

The variables of the teacher are in `Frozen.teacher`, so the train step only reads them: they are
not differentiated, saved or audited, and the trained artifact does not need them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from finetune_jax.artifact import Artifact
from finetune_jax.data.preprocess import ImagePreprocess, Preprocess
from finetune_jax.errors import UserError
from finetune_jax.mesh import put_leaf
from finetune_jax.setup import Setup
from finetune_jax.tasks import Task
from finetune_jax.tasks.teacher import Teacher
from finetune_jax.training.shared import SharedCaches


def with_teacher(setup: Setup, caches: SharedCaches | None = None) -> Setup:
    """Returns the setup with the teacher that its task names; `setup` itself without a teacher.

    Args:
      setup: resolved config.
      caches: caches that keep the teacher for the other arms.

    Raises:
      UserError: as for `open_teacher`.
    """
    task = setup.task
    if not task.teacher:
        return setup
    teacher = (caches or SharedCaches()).teachers.get(
        task.teacher, lambda: open_teacher(task, setup.preprocess, setup.mesh)
    )
    return dataclasses.replace(setup, teacher=teacher)


def open_teacher(task: Task, preprocess: Preprocess, mesh: Mesh) -> Teacher:
    """Loads the artifact that ``task.teacher`` names.

    Args:
      task: task of the student.
      preprocess: preprocessing of the student.
      mesh: devices that the teacher's leaves are put on.

    Raises:
      UserError: the folder holds no complete artifact, or the artifact has another task, other
        classes or another kind of input.
    """
    artifact = Artifact.load(Path(task.teacher).expanduser())
    expected, found = (t.to_json().get("class_names") for t in (task, artifact.task))
    if artifact.task.name != task.name or expected != found:
        raise UserError(
            f"task.loss: the teacher {task.teacher} predicts {artifact.task.name} with classes "
            f"{_shown(found)}; expected {task.name} with classes {_shown(expected)}"
        )
    variables = jax.tree.map(lambda x: put_leaf(x, mesh), artifact.variables)
    return Teacher(artifact.model, variables, translation(preprocess, artifact.preprocess))


def translation(source: Preprocess, target: Preprocess) -> Callable[[Any], Any]:
    """Returns the function from outputs of ``source.device`` to outputs of ``target.device``.

    Normalisation, order of the colour channels and size of images change; their crop stays the crop
    of `source`.

    Raises:
      UserError: one preprocessing reads texts and the other reads images, or the two cut texts
        into different tokens.
    """
    if source.kind != target.kind:
        raise UserError(
            f"task.loss: the teacher reads {target.kind}s, and the student {source.kind}s"
        )
    if source.kind == "text":
        if source.to_json() != target.to_json():
            raise UserError(
                "task.loss: the teacher reads texts by another tokenizer, other columns or another "
                "number of tokens; expected the student's"
            )
        return lambda x: x

    assert isinstance(source, ImagePreprocess) and isinstance(target, ImagePreprocess)
    return _image_translation(source, target)


def _image_translation(source: ImagePreprocess, target: ImagePreprocess) -> Callable[[Any], Any]:
    same = [getattr(source, k) == getattr(target, k) for k in ("mean", "std", "channels", "size")]
    if all(same):
        return lambda x: x

    def translate(x: jax.Array) -> jax.Array:
        pixels = x * jnp.asarray(source.std) + jnp.asarray(source.mean)
        if source.channels != target.channels:
            pixels = pixels[..., ::-1]
        if source.size != target.size:
            shape = (x.shape[0], target.size, target.size, x.shape[-1])
            pixels = jax.image.resize(pixels, shape, "bilinear")
        return (pixels - jnp.asarray(target.mean)) / jnp.asarray(target.std)

    return translate


def _shown(names: Sequence[str] | None) -> str:
    return ", ".join(map(str, names[:6])) + (", …" if len(names) > 6 else "") if names else "none"

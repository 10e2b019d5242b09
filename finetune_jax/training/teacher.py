"""A teacher: an artifact whose answers the loss of training reads, on the student's own input.

The teacher's leaves are in `Frozen.teacher`, so the step only reads them: they are not
differentiated, saved or audited, and the trained artifact does not need them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from finetune_jax.artifact import Artifact
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.deltas import Adapted
from finetune_jax.errors import UserError
from finetune_jax.mesh import put_leaf
from finetune_jax.setup import Setup
from finetune_jax.tasks import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model.

    Attributes:
      model: with its deltas.
      variables: on devices.
      translate: the student's input, augmented and normalised, to the teacher's.
    """

    model: Adapted
    variables: dict[str, Any]
    translate: Callable[[Any], Any]

    def answer(self, variables: dict[str, Any], x: Any) -> dict[str, jax.Array]:
        """``teacher`` f32[b, classes], its logits, and ``teacher_features`` f32[b, width]."""
        features = self.model.apply(variables, self.translate(x), stop="head")
        logits = self.model.apply(variables, features, start="head")
        return jax.lax.stop_gradient({"teacher": logits, "teacher_features": features})


def with_teacher(
    setup: Setup,
    once: Callable[[Any, Callable[[], Any]], Any] = lambda key, make: make(),
) -> Setup:
    """The setup with the teacher that its task names; as it is without one.

    Args:
      setup: resolved config.
      once: keeps the teacher for the next arm, see `Shared.once`.

    Raises:
      UserError: as `open_teacher`.
    """
    task = setup.task
    if not task.teacher:
        return setup
    teacher = once(("teacher",), lambda: open_teacher(task, setup.preprocess, setup.mesh))
    return dataclasses.replace(setup, teacher=teacher)


def open_teacher(task: Task, preprocess: Preprocess, mesh: Mesh) -> Teacher:
    """Loads the artifact that ``task.teacher`` names.

    Args:
      task: the student's.
      preprocess: likewise.
      mesh: where the teacher's leaves are put.

    Raises:
      UserError: no whole artifact there, or it answers another question or reads another input.
    """
    artifact = Artifact.load(Path(task.teacher).expanduser())
    own, other = task.to_json().get("class_names"), artifact.task.to_json().get("class_names")
    if artifact.task.name != task.name or own != other:
        raise UserError(
            f"task.loss: the teacher {task.teacher} answers {artifact.task.name} with classes "
            f"{_shown(other)}; expected {task.name} with classes {_shown(own)}"
        )
    variables = jax.tree.map(lambda x: put_leaf(x, mesh), artifact.variables)
    return Teacher(artifact.model, variables, translation(preprocess, artifact.preprocess))


def translation(source: Preprocess, target: Preprocess) -> Callable[[Any], Any]:
    """From what one preprocessing's `device` gives to what another's does.

    Images change their normalisation, order of colours and size; how they were cropped stays the
    first one's.

    Raises:
      UserError: the one reads texts and the other images, or texts are cut into other tokens.
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

    def translate(x: jax.Array) -> jax.Array:
        pixels = x * jnp.asarray(source.std) + jnp.asarray(source.mean)
        if source.channels != target.channels:
            pixels = pixels[..., ::-1]
        if source.size != target.size:
            shape = (x.shape[0], target.size, target.size, x.shape[-1])
            pixels = jax.image.resize(pixels, shape, "bilinear")
        return (pixels - jnp.asarray(target.mean)) / jnp.asarray(target.std)

    same = [getattr(source, k) == getattr(target, k) for k in ("mean", "std", "channels", "size")]
    return (lambda x: x) if all(same) else translate


def _shown(names: Any) -> str:
    return ", ".join(map(str, names[:6])) + (", …" if len(names) > 6 else "") if names else "none"

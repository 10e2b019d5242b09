"""A teacher: a frozen model whose outputs the training loss of a student reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax


class TeacherModel(Protocol):
    """A model that runs from stage to stage, such as a `StagedModel` with or without deltas."""

    def apply(
        self, variables: Any, x: Any, /, *, start: str | None = None, stop: str | None = None
    ) -> Any:
        """Returns the output of the stages from `start` on, up to but without `stop`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model that a student learns from.

    The variables are an argument of `outputs`, because the train step is given them as data: as
    constants they would be compiled into the program.

    Attributes:
      model: model of the teacher, deltas included.
      variables: variables of the model, on devices.
      translate: function from the student's input, augmented and normalised, to the teacher's
        input.
    """

    model: TeacherModel
    variables: dict[str, Any]
    translate: Callable[[Any], Any]

    def outputs(self, variables: dict[str, Any], x: Any) -> dict[str, jax.Array]:
        """Returns the teacher's outputs for inputs of the student, without a gradient.

        Args:
          variables: variables of the teacher.
          x: the student's input, augmented and normalised.

        Returns:
          ``teacher`` f32[batch, classes], the logits, and ``teacher_features`` f32[batch, width].
        """
        features = self.model.apply(variables, self.translate(x), stop="head")
        logits = self.model.apply(variables, features, start="head")
        return jax.lax.stop_gradient({"teacher": logits, "teacher_features": features})

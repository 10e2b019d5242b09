"""The base class of all models: a model is a sequence of named stages.

The top-level keys of the param pytree are the stages in forward order, and a model can run from any
stage to any later stage. Freezing schemes, layer-wise learning rates, cost per stage and the frozen
prefix are therefore written once against this class, and not once per family.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

PRETRAINING = {
    "projection": "it belongs to contrastive pre-training",
    "decoder": "it belongs to masked pre-training",
}
"""Stages that a model has only during pre-training, and the reason that a manifest gives.

See `finetune_jax.models.pretraining`.
"""


@dataclasses.dataclass(frozen=True)
class Mode:
    """Which stages behave as in training. A mode is hashable: it is a static argument of the step.

    Attributes:
      batch_statistics: stages whose BatchNorm normalises by the statistics of the batch and updates
        its running statistics. In all other stages, BatchNorm normalises by the running statistics
        and leaves them unchanged.
      dropout: stages whose dropout is active.
    """

    batch_statistics: frozenset[str] = frozenset()
    dropout: frozenset[str] = frozenset()


EVAL = Mode()


class Resizable(NamedTuple):
    """A leaf whose shape depends on the model's input, which weight surgery may therefore resize.

    Attributes:
      kind: ``position`` for position embeddings f[1, prefix + rows * columns, width], ``kernel``
        for the kernel of a patch embedding f[h, w, in, out].
      prefix: number of tokens before the grid that have a position embedding, such as the class
        token.
    """

    kind: str
    prefix: int = 0


class StagedModel(nn.Module):
    """Base class of models: a subclass names its stages and creates their modules in `setup`.

    Every stage but the head is called as ``stage(x, batch_statistics, dropout)`` with two bools.
    The last stage is always ``head``, an `nn.Dense`. `pool` computes the features that the head
    reads from the output of the stage before the head, so that ``stop="head"`` gives features
    f32[batch, width]. The value between two stages is an array, or the pair (tokens, mask) in
    models of texts.
    """

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in forward order; the last one is ``head``."""
        raise NotImplementedError

    @property
    def pools_before(self) -> str:
        """Name of the stage whose input is the result of `pool`."""
        return "head"

    @property
    def resizable(self) -> dict[str, Resizable]:
        """Leaves, by path, whose shape depends on the input: position embeddings, patch kernels."""
        return {}

    @property
    def fresh_stages(self) -> dict[str, str]:
        """Stages of a chosen head that ignore the files of other projects: {stage: reason}."""
        return {}

    @property
    def absent_stages(self) -> dict[str, str]:
        """Stages that files of this family have but this model has not: {stage: reason}."""
        return dict(PRETRAINING)

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of axes that our leaves merge and other projects keep apart: ``heads``, …."""
        return {}

    @property
    def pooled_norm(self) -> bool | None:
        """Whether the final norm follows the pooling of tokens; None where both are equal."""
        return None

    def check(self) -> None:
        """Raises UserError for an unknown value of a field, or values that exclude each other."""

    def standardised(self, module: str) -> bool:
        """Whether a module standardises its kernel before use, which rules out a merged delta.

        Args:
          module: path of the module, '/'-joined.
        """
        del module
        return False

    def example(self, size: int) -> Any:
        """An input that determines the shapes of all parameters: one image f32[1, size, size, 3].

        For a model of texts, the input is one text of `size` tokens.
        """
        return jnp.zeros((1, size, size, 3), jnp.float32)

    def pool(self, x: Any) -> jax.Array:
        """Features that the head reads, from the output `x` of the stage before the head."""
        features: jax.Array = x
        return features

    def grid(self, x: Any) -> jax.Array:
        """The output of the last stage before pooling as a grid f[batch, rows, columns, width].

        Raises ValueError if the output of that stage has no rows and columns.
        """
        if getattr(x, "ndim", 0) != 4:
            raise ValueError("its last stage before the head has no rows and columns")
        grid: jax.Array = x
        return grid

    def __call__(
        self,
        x: Any,
        mode: Mode = EVAL,
        *,
        start: str | None = None,
        stop: str | None = None,
    ) -> jax.Array:
        """Runs the stages from `start` (included, default first) to `stop` (excluded).

        Args:
          x: normalised images f32[batch, height, width, 3]; for a model of texts, token numbers in
            the form that the class of the model documents; with `start`, the output of the stage
            before `start`.
          mode: stages that run as in training.
          start: name of the first stage to run; None for the first stage of the model.
          stop: name of the stage to stop before; None runs all stages.

        Returns:
          logits f32[batch, classes], or the input of the stage `stop`.

        Raises:
          ValueError: an unknown stage name.
        """
        names = self.stages
        begin = names.index(start) if start else 0
        end = names.index(stop) if stop else len(names)
        for name in names[begin:end]:
            stage = getattr(self, name)
            if name == "head":
                x = stage(x)
            else:
                x = stage(x, name in mode.batch_statistics, name in mode.dropout)
                if names[names.index(name) + 1] == self.pools_before:
                    x = self.pool(x)
        return x

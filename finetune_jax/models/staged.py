"""A model is a sequence of named stages: the one shape every family has.

The top-level keys of the param pytree are the stages in forward order, and a model can run from one
stage to another. Freezing schemes, layer-wise rates, cost per stage and frozen prefixes are written
once against this class instead of once per family.
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
"""Stages that a model has only while it is pre-trained, see `finetune_jax.models.pretraining`."""


@dataclasses.dataclass(frozen=True)
class Mode:
    """Which stages behave as in training; hashable, so it is a static argument of the step.

    Attributes:
      batch_statistics: stages whose BatchNorm normalises by the batch and updates its running
        statistics. All others use, and keep, the running statistics.
      dropout: stages whose dropout is active.
    """

    batch_statistics: frozenset[str] = frozenset()
    dropout: frozenset[str] = frozenset()


EVAL = Mode()


class Resizable(NamedTuple):
    """What weight surgery may do to a leaf whose shape follows the model's input.

    Attributes:
      kind: ``position``: f[1, prefix + rows * columns, width], or ``kernel``: f[h, w, in, out].
      prefix: tokens before the grid that have a position of their own, such as a class token.
    """

    kind: str
    prefix: int = 0


class StagedModel(nn.Module):
    """Base class: a subclass names its stages and creates one submodule per stage in `setup`.

    Every stage but the head is called as ``stage(x, batch_statistics, dropout)`` with two bools.
    The last stage is always ``head``, an `nn.Dense`; `pool` turns the output of the stage before
    it into the features the head reads, so ``stop="head"`` gives features f32[batch, width]. What
    goes from stage to stage is an array, or with texts the pair (tokens, mask).
    """

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in forward order; the last one is ``head``."""
        raise NotImplementedError

    @property
    def pools_before(self) -> str:
        """The stage that reads what `pool` returns."""
        return "head"

    @property
    def resizable(self) -> dict[str, Resizable]:
        """Leaf paths whose shape follows the input: position embeddings, patch kernels."""
        return {}

    @property
    def fresh_stages(self) -> dict[str, str]:
        """Stages, of a chosen head, that take no tensors of other projects' files, and why."""
        return {}

    @property
    def absent_stages(self) -> dict[str, str]:
        """Stages of the files of this family that this model goes without, and why."""
        return dict(PRETRAINING)

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of axes that our leaves join and other projects keep apart, such as heads."""
        return {}

    def standardised(self, module: str) -> bool:
        """Whether a module standardises its kernel before use: no delta beside it can be merged."""
        del module
        return False

    def example(self, size: int) -> Any:
        """The least input that shapes all parameters: one image of `size` pixels squared.

        For a model of texts, one text of `size` tokens.
        """
        return jnp.zeros((1, size, size, 3), jnp.float32)

    def pool(self, x: Any) -> jax.Array:
        """Features from the output of the last stage before the head."""
        return x

    def grid(self, x: Any) -> jax.Array:
        """The output of the last stage before pooling as f[batch, rows, columns, width].

        Raises ValueError where there is no such grid.
        """
        if getattr(x, "ndim", 0) != 4:
            raise ValueError("its last stage before the head has no rows and columns")
        return x

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
          x: images f32[batch, height, width, 3] already normalised, for a model of texts token
            numbers as its class describes them, or the output of the stage before `start`.
          mode: which stages run as in training.
          start: name of the first stage to run.
          stop: name of the first stage not to run.

        Returns:
          logits f32[batch, classes], or the activations entering `stop`.

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

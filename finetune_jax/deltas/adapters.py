"""Bottleneck adapters of transformer blocks: Houlsby, Pfeiffer, AdaptFormer.

Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2020, arXiv 2005.00247; Chen et al. 2022
(AdaptFormer), arXiv 2205.13535.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax import schema
from finetune_jax.deltas.base import Arrays, Delta, DeltaLeaf, Shapes, cast, leaf_key


@dataclasses.dataclass(frozen=True)
class Bottleneck(Delta):
    """y + scale * up(act(down(y))) for a module's output y; down is random, up starts at 0.

    Houlsby: after each sublayer, before the residual sum. Pfeiffer: after a whole block.

    Only one projection starts at zero: if both did, the gradients of both kernels and of the bias
    of `down` would stay zero for ever.

    Attributes:
      width: width of y.
      size: width of the bottleneck.
      scale: factor on the branch.
      act: activation, ``gelu`` or ``relu``.
    """

    width: int = 0
    size: int = 64
    scale: float = 1.0
    act: str = "gelu"

    kind = "adapter"

    def __post_init__(self) -> None:
        """Raises UserError for an unknown activation."""
        schema.text(choices=("gelu", "relu"))(self.act, f"{self.kind}: act")

    def leaves(self, base: Shapes) -> dict[str, DeltaLeaf]:
        return {
            self.path("down/kernel"): DeltaLeaf((self.width, self.size)),
            self.path("down/bias"): DeltaLeaf((self.size,)),
            self.path("up/kernel"): DeltaLeaf((self.size, self.width)),
            self.path("up/bias"): DeltaLeaf((self.width,)),
        }

    def initial(self, key: jax.Array, base: Arrays) -> dict[str, jax.Array]:
        values = {path: jnp.zeros(leaf.shape) for path, leaf in self.leaves(base).items()}
        down = self.path("down/kernel")
        bound = 1 / math.sqrt(self.width)
        values[down] = jax.random.uniform(
            leaf_key(key, down), (self.width, self.size), jnp.float32, -bound, bound
        )
        return values

    def branch(self, x: jax.Array, leaves: Arrays) -> jax.Array:
        """scale * up(act(down(x))) of x f[..., width], in x's dtype."""
        down, down_bias, up, up_bias = (
            cast(leaves[self.path(leaf)], x)
            for leaf in ("down/kernel", "down/bias", "up/kernel", "up/bias")
        )
        hidden = x @ down + down_bias
        hidden = nn.relu(hidden) if self.act == "relu" else nn.gelu(hidden, approximate=False)
        return self.scale * (hidden @ up + up_bias)

    def call(
        self,
        module: nn.Module,
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        leaves: Arrays,
        memory: dict[str, Any],
    ) -> Any:
        y = next_call(*args)
        if isinstance(y, tuple):  # A block over texts returns its tokens and their mask.
            tokens, *others = y
            return (tokens + self.branch(tokens, leaves), *others)
        return y + self.branch(y, leaves)


@dataclasses.dataclass(frozen=True)
class AdaptFormer(Bottleneck):
    """A bottleneck parallel to the feed-forward: same input, and its output is added.

    `module` is the module whose input the bottleneck reads: the norm before the feed-forward, or in
    a post-norm block the first dense layer of the feed-forward.

    Attributes:
      adds_to: path of the last dense layer of the feed-forward, to whose output the bottleneck's
        output is added.
    """

    adds_to: str = ""

    kind = "adaptformer"

    @property
    def modules(self) -> tuple[str, ...]:
        return (self.module, self.adds_to)

    def call(
        self,
        module: nn.Module,
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        leaves: Arrays,
        memory: dict[str, Any],
    ) -> Any:
        if "/".join(module.path) == self.module:
            memory[self.module] = args[0]
            return next_call(*args)
        y = next_call(*args)
        return y + self.branch(cast(memory.pop(self.module), y), leaves)

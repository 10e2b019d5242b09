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

from finetune_jax.deltas.base import Delta, DeltaLeaf, Leaves, cast, leaf_key


@dataclasses.dataclass(frozen=True)
class Bottleneck(Delta):
    """y + scale * up(act(down(y))) for a module's output y; down is random, up starts at 0.

    Houlsby: after each sublayer, before the residual sum. Pfeiffer: after a whole block.

    With both projections at zero, three of the four gradients would be zero for ever.

    Attributes:
      width: of y.
      size: of the bottleneck.
      scale: factor on the branch.
      act: ``gelu`` or ``relu``.
    """

    width: int = 0
    size: int = 64
    scale: float = 1.0
    act: str = "gelu"

    kind = "adapter"

    def leaves(self, base: Leaves) -> dict[str, DeltaLeaf]:
        return {
            self.path("down/kernel"): DeltaLeaf((self.width, self.size)),
            self.path("down/bias"): DeltaLeaf((self.size,)),
            self.path("up/kernel"): DeltaLeaf((self.size, self.width)),
            self.path("up/bias"): DeltaLeaf((self.width,)),
        }

    def initial(self, key: jax.Array, base: Leaves) -> dict[str, jax.Array]:
        values = {path: jnp.zeros(leaf.shape) for path, leaf in self.leaves(base).items()}
        down = self.path("down/kernel")
        bound = 1 / math.sqrt(self.width)
        values[down] = jax.random.uniform(
            leaf_key(key, down), (self.width, self.size), jnp.float32, -bound, bound
        )
        return values

    def branch(self, x: jax.Array, own: Leaves) -> jax.Array:
        """The bottleneck of x [..., width], in x's dtype."""
        down, bias = cast(own[self.path("down/kernel")], x), cast(own[self.path("down/bias")], x)
        hidden = x @ down + bias
        hidden = nn.relu(hidden) if self.act == "relu" else nn.gelu(hidden, approximate=False)
        up, bias = cast(own[self.path("up/kernel")], x), cast(own[self.path("up/bias")], x)
        return self.scale * (hidden @ up + bias)

    def call(
        self,
        module: Any,
        next_call: Callable[..., Any],
        args: tuple,
        own: Leaves,
        memory: dict[str, Any],
    ) -> Any:
        y = next_call(*args)
        if isinstance(y, tuple):  # a block over texts hands its mask on beside the tokens
            tokens, *others = y
            return (tokens + self.branch(tokens, own), *others)
        return y + self.branch(y, own)


@dataclasses.dataclass(frozen=True)
class AdaptFormer(Bottleneck):
    """A branch parallel to the feed-forward: reads what enters it, adds to its output.

    The module is where it reads: the norm before the feed-forward, or in a post-norm block the
    first dense layer.

    Attributes:
      adds_to: path of the last dense layer of the feed-forward.
    """

    adds_to: str = ""

    kind = "adaptformer"

    @property
    def modules(self) -> tuple[str, ...]:
        return (self.module, self.adds_to)

    def call(
        self,
        module: Any,
        next_call: Callable[..., Any],
        args: tuple,
        own: Leaves,
        memory: dict[str, Any],
    ) -> Any:
        if "/".join(module.path) == self.module:
            memory[self.module] = args[0]
            return next_call(*args)
        y = next_call(*args)
        return y + self.branch(cast(memory.pop(self.module), y), own)

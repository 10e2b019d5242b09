"""Visual prompt tuning: learned tokens before the patches (Jia et al. 2022, arXiv 2203.12119).

Shallow prompts enter before the first block and stay until the last block. Deep prompts are
replaced at every block. Prompts start at random values, so unlike all other deltas (but `SSF` with
`std` > 0) they change the logits before the first step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.deltas.base import Arrays, Delta, DeltaLeaf, Shapes, cast, leaf_key


@dataclasses.dataclass(frozen=True)
class Prompt(Delta):
    """Tokens inserted into the input of one block and removed from the output of a block.

    Attributes:
      width: width of a token.
      tokens: number of inserted tokens.
      patch_inputs: number of scalars of one patch, 3 * patch²: the start values are uniform in
        ±sqrt(6 / (patch_inputs + width)), as in the paper.
      offset: number of tokens before the prompts: a class token and registers.
      until: the stage from whose output the prompts are removed.
    """

    width: int = 0
    tokens: int = 5
    patch_inputs: int = 768
    offset: int = 1
    until: str = ""

    kind = "prompt"

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.module, self.until)))

    def leaves(self, base: Shapes) -> dict[str, DeltaLeaf]:
        return {self.path("tokens"): DeltaLeaf((self.tokens, self.width))}

    def initial(self, key: jax.Array, base: Arrays) -> dict[str, jax.Array]:
        path = self.path("tokens")
        bound = math.sqrt(6 / (self.patch_inputs + self.width))
        shape = (self.tokens, self.width)
        return {path: jax.random.uniform(leaf_key(key, path), shape, jnp.float32, -bound, bound)}

    def insert(self, x: jax.Array, leaves: Arrays) -> jax.Array:
        """Tokens f[batch, n, width] with the prompts: f[batch, n + tokens, width]."""
        tokens = cast(leaves[self.path("tokens")], x)
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
        return jnp.concatenate([x[:, : self.offset], tokens, x[:, self.offset :]], axis=1)

    def remove(self, y: jax.Array) -> jax.Array:
        """Tokens f[batch, n + tokens, width] without the prompts: f[batch, n, width]."""
        return jnp.concatenate([y[:, : self.offset], y[:, self.offset + self.tokens :]], axis=1)

    def call(
        self,
        module: nn.Module,
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        leaves: Arrays,
        memory: dict[str, Any],
    ) -> Any:
        path, x = "/".join(module.path), args[0]
        y = next_call(self.insert(x, leaves) if path == self.module else x, *args[1:])
        return self.remove(y) if path == self.until else y

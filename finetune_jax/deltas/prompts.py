"""Visual prompt tuning: learned tokens before the patches (Jia et al. 2022, arXiv 2203.12119).

Shallow prompts enter before the first block and stay until the last; deep prompts are replaced at
every block. Their start is random, so unlike every other delta they change the first logits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.deltas.base import Delta, DeltaLeaf, Leaves, cast, leaf_key


@dataclasses.dataclass(frozen=True)
class Prompt(Delta):
    """Tokens put into the input of one block and taken out of the output of another.

    Attributes:
      width: of a token.
      tokens: how many.
      patch_inputs: scalars of one patch, 3 * patch²: the draw is uniform in
        ±sqrt(6 / (patch_inputs + width)), as in the paper.
      offset: tokens before the prompts: a class token and registers.
      until: the stage whose output is freed of them.
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

    def leaves(self, base: Leaves) -> dict[str, DeltaLeaf]:
        return {self.path("tokens"): DeltaLeaf((self.tokens, self.width))}

    def initial(self, key: jax.Array, base: Leaves) -> dict[str, jax.Array]:
        path = self.path("tokens")
        bound = math.sqrt(6 / (self.patch_inputs + self.width))
        shape = (self.tokens, self.width)
        return {path: jax.random.uniform(leaf_key(key, path), shape, jnp.float32, -bound, bound)}

    def insert(self, x: jax.Array, own: Leaves) -> jax.Array:
        """[b, n, width] to [b, n + tokens, width]."""
        tokens = cast(own[self.path("tokens")], x)
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
        return jnp.concatenate([x[:, : self.offset], tokens, x[:, self.offset :]], axis=1)

    def remove(self, y: jax.Array) -> jax.Array:
        """The inverse on shapes."""
        return jnp.concatenate([y[:, : self.offset], y[:, self.offset + self.tokens :]], axis=1)

    def call(
        self,
        module: Any,
        next_call: Callable[..., Any],
        args: tuple,
        own: Leaves,
        memory: dict[str, Any],
    ) -> Any:
        here, x = "/".join(module.path), args[0]
        y = next_call(self.insert(x, own) if here == self.module else x, *args[1:])
        return self.remove(y) if here == self.until else y

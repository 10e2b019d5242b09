"""Deltas that scale and shift activations: IA3 and SSF.

IA3: Liu et al. 2022, arXiv 2205.05638. SSF: Lian et al. 2022, arXiv 2210.08823.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.deltas.base import Arrays, Delta, DeltaLeaf, Shapes, cast, leaf_key


@dataclasses.dataclass(frozen=True)
class IA3(Delta):
    """y = (x W + b) * l, or with `inputs` y = (x * l) W + b; l starts at 1.

    Attributes:
      inputs: whether l scales the input (the second dense layer of a feed-forward block) instead of
        the output (keys and values).
    """

    inputs: bool = False

    kind = "ia3"

    def leaves(self, base: Shapes) -> dict[str, DeltaLeaf]:
        kernel = self.require(base, "kernel")
        return {self.path("scale"): DeltaLeaf((kernel.shape[-2 if self.inputs else -1],))}

    def initial(self, key: jax.Array, base: Arrays) -> dict[str, jax.Array]:
        return {path: jnp.ones(leaf.shape) for path, leaf in self.leaves(base).items()}

    def call(
        self,
        module: nn.Module,
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        leaves: Arrays,
        memory: dict[str, Any],
    ) -> Any:
        scale = leaves[self.path("scale")]
        if self.inputs:
            return next_call(args[0] * cast(scale, args[0]), *args[1:])
        y = next_call(*args)
        return y * cast(scale, y)

    def merge(self, leaves: Arrays) -> dict[str, jax.Array]:
        scale = jnp.asarray(leaves[self.path("scale")])
        kernel = jnp.asarray(leaves[f"{self.module}/kernel"], jnp.float32)
        if self.inputs:
            return {f"{self.module}/kernel": kernel * scale[:, None]}
        merged = {f"{self.module}/kernel": kernel * scale}
        if f"{self.module}/bias" in leaves:
            merged[f"{self.module}/bias"] = jnp.asarray(leaves[f"{self.module}/bias"]) * scale
        return merged


@dataclasses.dataclass(frozen=True)
class SSF(Delta):
    """y * gamma + beta after an operation that has a bias: dense, convolution or norm.

    Attributes:
      std: standard deviation of the start values, gamma ~ N(1, std²) and beta ~ N(0, std²); with 0
        the start is the identity. The released code draws with 0.02.
    """

    std: float = 0.0

    kind = "ssf"

    def leaves(self, base: Shapes) -> dict[str, DeltaLeaf]:
        shape = tuple(self.require(base, "bias").shape)
        return {self.path("scale"): DeltaLeaf(shape), self.path("shift"): DeltaLeaf(shape)}

    def initial(self, key: jax.Array, base: Arrays) -> dict[str, jax.Array]:
        scale, shift = self.leaves(base)
        size = base[f"{self.module}/bias"].shape
        noise = {
            path: self.std * jax.random.normal(leaf_key(key, path), size) for path in (scale, shift)
        }
        return {scale: 1 + noise[scale], shift: noise[shift]}

    def call(
        self,
        module: nn.Module,
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        leaves: Arrays,
        memory: dict[str, Any],
    ) -> Any:
        y = next_call(*args)
        return y * cast(leaves[self.path("scale")], y) + cast(leaves[self.path("shift")], y)

    def merge(self, leaves: Arrays) -> dict[str, jax.Array]:
        gamma, beta = jnp.asarray(leaves[self.path("scale")]), leaves[self.path("shift")]
        weight = "kernel" if f"{self.module}/kernel" in leaves else "scale"
        return {
            f"{self.module}/{weight}": jnp.asarray(leaves[f"{self.module}/{weight}"]) * gamma,
            f"{self.module}/bias": jnp.asarray(leaves[f"{self.module}/bias"]) * gamma + beta,
        }

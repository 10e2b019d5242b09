"""Low-rank deltas for dense and convolution kernels: LoRA and its named variants.

LoRA: Hu et al. 2021, arXiv 2106.09685. rsLoRA: Kalajdzievski 2023, arXiv 2312.03732. DoRA: Liu et
al. 2024, arXiv 2402.09353. PiSSA: Meng et al. 2024, arXiv 2404.02948. LoRA+: Hayou et al. 2024,
arXiv 2402.12354.
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
from finetune_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoRA(Delta):
    """y = x W + s (x A) B, with A f32[in, rank] and B f32[rank, out]; A of a convolution is one.

    The gradient of W is never formed: what is differentiated are two thin products beside the
    frozen one.

    Attributes:
      rank: of A B, at least 1.
      alpha: s = alpha / rank; with `rslora`, alpha / sqrt(rank).
      rslora: see `alpha`.
      dora: columns of W + s A B are scaled to the length ‖W‖ + shift, where shift f32[out] trains
        from 0 and the column norm counts as constant in the backward pass, as in the paper.
        Dense kernels only.
      pissa: A and B start from the leading singular vectors of W; the start values stay as constant
        leaves that are subtracted, so the base is left as it is. Dense kernels only.
      plus: learning rate of B over that of A (LoRA+; the paper advises about 16).
    """

    rank: int = 8
    alpha: float = 8.0
    rslora: bool = False
    dora: bool = False
    pissa: bool = False
    plus: float = 1.0

    kind = "lora"
    nesting = 0  # DoRA's lengths are those of the bare kernel's columns

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def leaves(self, base: Leaves) -> dict[str, DeltaLeaf]:
        kernel = self.require(base, "kernel")
        *window, inputs, outputs = kernel.shape
        if window and (self.dora or self.pissa):
            raise UserError(
                f"lora: dora and pissa need a dense kernel; {self.module!r} is a convolution of "
                f"shape {tuple(kernel.shape)}"
            )
        limit = min(math.prod(window) * inputs, outputs)
        if not 1 <= self.rank <= limit:
            raise UserError(
                f"lora: the rank must be from 1 to {limit} at {self.module!r}, found {self.rank}"
            )
        a, b = (*window, inputs, self.rank), (self.rank, outputs)
        result = {
            self.path("a"): DeltaLeaf(a),
            self.path("b"): DeltaLeaf(b, lr=self.plus),
        }
        if self.dora:
            result[self.path("shift")] = DeltaLeaf((outputs,))
        if self.pissa:
            result[self.path("a0")] = DeltaLeaf(a, trains=False)
            result[self.path("b0")] = DeltaLeaf(b, trains=False)
        return result

    def initial(self, key: jax.Array, base: Leaves) -> dict[str, jax.Array]:
        kernel = jnp.asarray(base[f"{self.module}/kernel"], jnp.float32)
        *window, inputs, outputs = kernel.shape
        result = {}
        if self.pissa:
            u, singular, v = jnp.linalg.svd(kernel, full_matrices=False)
            root = jnp.sqrt(singular[: self.rank] / self.scale)
            a, b = u[:, : self.rank] * root, root[:, None] * v[: self.rank]
            # Copies, because one array at two paths would be tied leaves.
            result |= {self.path("a0"): jnp.array(a), self.path("b0"): jnp.array(b)}
        else:
            # Kaiming-uniform with a = sqrt(5), as the released implementations draw A.
            bound = 1 / math.sqrt(math.prod(window) * inputs)
            shape = (*window, inputs, self.rank)
            path = self.path("a")
            a = jax.random.uniform(leaf_key(key, path), shape, jnp.float32, -bound, bound)
            b = jnp.zeros((self.rank, outputs), jnp.float32)
        result |= {self.path("a"): a, self.path("b"): b}
        if self.dora:
            result[self.path("shift")] = jnp.zeros(outputs, jnp.float32)
        return result

    def call(
        self,
        module: Any,
        next_call: Callable[..., Any],
        args: tuple,
        own: Leaves,
        memory: dict[str, Any],
    ) -> Any:
        x, y = args[0], next_call(*args)
        a, b = own[self.path("a")], own[self.path("b")]
        delta = self._product(module, x, y, a, b)
        if self.pissa:
            a0, b0 = own[self.path("a0")], own[self.path("b0")]
            delta = delta - self._product(module, x, y, a0, b0)
        if not self.dora:
            return y + delta
        norm, length = self._lengths(own)
        bias = own.get(f"{self.module}/bias")
        linear = y if bias is None else y - cast(bias, y)
        ratio = length / norm
        # Written as a change of y, which is exactly zero at the start.
        return y + delta * cast(ratio, y) + linear * cast(ratio - 1, y)

    def _product(self, module: Any, x: jax.Array, y: jax.Array, a: Any, b: Any) -> jax.Array:
        x, a, b = cast(x, y), cast(a, y), cast(b, y)
        if isinstance(module, nn.Conv):
            if module.feature_group_count != 1:
                raise UserError(f"lora: {self.module!r} is a grouped convolution")
            padding = module.padding
            if isinstance(padding, int):
                padding = [(padding, padding)] * (a.ndim - 2)
            elif not isinstance(padding, str):
                padding = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
            strides = module.strides
            if strides is None or isinstance(strides, int):
                strides = (strides or 1,) * (a.ndim - 2)
            inner = jax.lax.conv_general_dilated(
                x, a, tuple(strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            inner = x @ a
        return (inner @ b) * self.scale

    def _difference(self, own: Leaves) -> jax.Array:
        product = jnp.asarray(own[self.path("a")]) @ jnp.asarray(own[self.path("b")])
        if self.pissa:
            product -= jnp.asarray(own[self.path("a0")]) @ jnp.asarray(own[self.path("b0")])
        return self.scale * product

    def _lengths(self, own: Leaves) -> tuple[jax.Array, jax.Array]:
        """(column norms of the moved kernel, the lengths its columns are scaled to)."""
        kernel = jnp.asarray(own[f"{self.module}/kernel"], jnp.float32)
        a, b = own[self.path("a")], own[self.path("b")]

        def inner(a: Any, b: Any, c: Any, d: Any) -> jax.Array:
            # <A B, C D> column by column, without forming either.
            return jnp.sum(((a.T @ c) @ d) * b, axis=0)

        # ‖W + s D‖² = ‖W‖² + 2 s <W, D> + s² ‖D‖² by columns, with D = A B, or A B - A0 B0: as
        # differences of equal terms at the start, where they cancel to exactly 0.
        start, cross = jnp.sum(kernel**2, axis=0), jnp.sum((a.T @ kernel) * b, axis=0)
        square = inner(a, b, a, b)
        if self.pissa:
            a0, b0 = own[self.path("a0")], own[self.path("b0")]
            cross -= jnp.sum((a0.T @ kernel) * b0, axis=0)
            square = square - 2 * inner(a, b, a0, b0) + inner(a0, b0, a0, b0)
        moved = start + 2 * self.scale * cross + self.scale**2 * square
        norm = jax.lax.stop_gradient(jnp.sqrt(moved))
        return norm, jnp.sqrt(start) + own[self.path("shift")]

    def merge(self, leaves: Leaves) -> dict[str, Any]:
        kernel = jnp.asarray(leaves[f"{self.module}/kernel"], jnp.float32)
        merged = kernel + self._difference(leaves)
        if self.dora:
            norm, length = self._lengths(leaves)
            merged = merged * (length / norm)
        return {f"{self.module}/kernel": merged}

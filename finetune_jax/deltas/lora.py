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

from finetune_jax.deltas.base import Arrays, Delta, DeltaLeaf, Shapes, cast, leaf_key
from finetune_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoRA(Delta):
    """y = x W + s (x A) B, with A f32[in, rank] and B f32[rank, out].

    Beside the kernel f32[h, w, in, out] of a convolution, A is a convolution f32[h, w, in, rank].
    The gradient of W is never formed: the backward pass differentiates the two thin products.

    Attributes:
      rank: rank of A B, at least 1.
      alpha: numerator of s = alpha / rank; with `rslora`, s = alpha / sqrt(rank).
      rslora: whether s divides by sqrt(rank) instead of rank.
      dora: whether each column of W + s A B is scaled to the length ‖W‖ + shift (norm of the
        column of W), where shift f32[out] trains from 0. The norm by which a column is divided
        counts as a constant in the backward pass, as in the paper. Dense kernels only.
      pissa: whether A and B start from the leading singular vectors of W. Constant leaves keep the
        start values, whose product is subtracted, so the base does not change. Dense kernels only.
      plus: ratio of the learning rate of B to the learning rate of A (LoRA+; the paper advises
        about 16).
    """

    rank: int = 8
    alpha: float = 8.0
    rslora: bool = False
    dora: bool = False
    pissa: bool = False
    plus: float = 1.0

    kind = "lora"
    nesting = 0  # DoRA's column norms are norms of the kernel, without scales such as SSF's.

    @property
    def scale(self) -> float:
        """The factor s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def leaves(self, base: Shapes) -> dict[str, DeltaLeaf]:
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

    def initial(self, key: jax.Array, base: Arrays) -> dict[str, jax.Array]:
        kernel = jnp.asarray(base[f"{self.module}/kernel"], jnp.float32)
        *window, inputs, outputs = kernel.shape
        result: dict[str, jax.Array] = {}
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
        module: nn.Module,
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        leaves: Arrays,
        memory: dict[str, Any],
    ) -> Any:
        x, y = args[0], next_call(*args)
        a, b = leaves[self.path("a")], leaves[self.path("b")]
        delta = self._product(module, x, y, a, b)
        if self.pissa:
            a0, b0 = leaves[self.path("a0")], leaves[self.path("b0")]
            delta = delta - self._product(module, x, y, a0, b0)
        if not self.dora:
            return y + delta
        norm, length = self._lengths(leaves)
        bias = leaves.get(f"{self.module}/bias")
        linear = y if bias is None else y - cast(bias, y)
        ratio = length / norm
        # y plus a change, because this change is exactly 0 at the start.
        return y + delta * cast(ratio, y) + linear * cast(ratio - 1, y)

    def _product(
        self, module: nn.Module, x: jax.Array, y: jax.Array, a: jax.Array, b: jax.Array
    ) -> jax.Array:
        x, a, b = cast(x, y), cast(a, y), cast(b, y)
        if isinstance(module, nn.Conv):
            if module.feature_group_count != 1:
                raise UserError(f"lora: {self.module!r} is a grouped convolution")
            strides, padding = _window(module, a.ndim - 2)
            inner = jax.lax.conv_general_dilated(
                x, a, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            inner = x @ a
        return (inner @ b) * self.scale

    def _difference(self, leaves: Arrays) -> jax.Array:
        product = jnp.asarray(leaves[self.path("a")]) @ jnp.asarray(leaves[self.path("b")])
        if self.pissa:
            product -= jnp.asarray(leaves[self.path("a0")]) @ jnp.asarray(leaves[self.path("b0")])
        return self.scale * product

    def _lengths(self, leaves: Arrays) -> tuple[jax.Array, jax.Array]:
        """(column norms of W + s A B, lengths to which these columns are scaled), f32[out] each."""
        kernel = jnp.asarray(leaves[f"{self.module}/kernel"], jnp.float32)
        a, b = leaves[self.path("a")], leaves[self.path("b")]

        def inner(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
            # <A B, C D> of each column, without forming A B or C D.
            return jnp.sum(((a.T @ c) @ d) * b, axis=0)

        # ‖W + s D‖² = ‖W‖² + 2 s <W, D> + s² ‖D‖² by columns, with D = A B, or A B - A0 B0. At the
        # start the terms of <W, D> and of ‖D‖² are equal in pairs and cancel to exactly 0.
        start, cross = jnp.sum(kernel**2, axis=0), jnp.sum((a.T @ kernel) * b, axis=0)
        square = inner(a, b, a, b)
        if self.pissa:
            a0, b0 = leaves[self.path("a0")], leaves[self.path("b0")]
            cross -= jnp.sum((a0.T @ kernel) * b0, axis=0)
            square = square - 2 * inner(a, b, a0, b0) + inner(a0, b0, a0, b0)
        moved = start + 2 * self.scale * cross + self.scale**2 * square
        norm = jax.lax.stop_gradient(jnp.sqrt(moved))
        return norm, jnp.sqrt(start) + leaves[self.path("shift")]

    def merge(self, leaves: Arrays) -> dict[str, jax.Array]:
        kernel = jnp.asarray(leaves[f"{self.module}/kernel"], jnp.float32)
        merged = kernel + self._difference(leaves)
        if self.dora:
            norm, length = self._lengths(leaves)
            merged = merged * (length / norm)
        return {f"{self.module}/kernel": merged}


def _window(module: nn.Conv, axes: int) -> tuple[tuple[int, ...], str | list[tuple[int, int]]]:
    """(strides, padding) of a Flax convolution, as `jax.lax.conv_general_dilated` takes them."""
    strides, padding = module.strides, module.padding
    if strides is None or isinstance(strides, int):
        strides = (strides or 1,) * axes
    if isinstance(padding, int):
        padding = [padding] * axes
    if isinstance(padding, str):
        return tuple(strides), padding
    return tuple(strides), [(p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding]

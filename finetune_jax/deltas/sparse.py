"""Single scalars of frozen leaves that train: the random-mask control arm (arXiv 2106.10199)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.deltas.base import Delta, DeltaLeaf, Leaves


@dataclasses.dataclass(frozen=True)
class Sparse(Delta):
    """A leaf plus values at `count` random places, which start at 0.

    The gradient of the whole leaf is formed and read at those places: the control arm saves
    optimizer state and checkpoint bytes, not FLOPs.

    Attributes:
      leaf: name of the leaf in the module.
      count: number of scalars that train, from 1 to the leaf's size.
      seed: of the places.
    """

    leaf: str = "kernel"
    count: int = 1
    seed: int = 0

    kind = "sparse"
    nesting = -1  # part of the leaf itself
    may_rest = True  # the few places of a leaf may all be at units that never fire

    def path(self, leaf: str) -> str:
        return f"{self.module}/{self.kind}_{self.leaf}_{leaf}"

    def leaves(self, base: Leaves) -> dict[str, DeltaLeaf]:
        self.require(base, self.leaf)
        return {
            self.path("values"): DeltaLeaf((self.count,)),
            self.path("places"): DeltaLeaf((self.count,), trains=False, dtype="int32"),
        }

    def initial(self, key: jax.Array, base: Leaves) -> dict[str, jax.Array]:
        size = int(np.prod(base[f"{self.module}/{self.leaf}"].shape))
        # NumPy's generator is specified bit for bit, so that the places survive a change of JAX.
        name = [ord(c) for c in f"{self.module}/{self.leaf}"]
        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self.seed, *name]))
        )
        places = np.sort(generator.choice(size, self.count, replace=False, shuffle=False))
        return {
            self.path("values"): jnp.zeros(self.count),
            self.path("places"): jnp.asarray(places, jnp.int32),
        }

    def effective(self, leaves: dict[str, Any]) -> dict[str, Any]:
        target = f"{self.module}/{self.leaf}"
        leaf = jnp.asarray(leaves[target], jnp.float32)
        places, values = leaves[self.path("places")], leaves[self.path("values")]
        flat = leaf.reshape(-1).at[places].add(values)
        return {target: flat.reshape(leaf.shape)}

    def merge(self, leaves: Leaves) -> dict[str, Any]:
        return self.effective(dict(leaves))

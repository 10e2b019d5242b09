"""Single scalars of frozen leaves that train: the random-mask control arm (arXiv 2106.10199)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.deltas.base import Arrays, Delta, DeltaLeaf, Shapes


@dataclasses.dataclass(frozen=True)
class Sparse(Delta):
    """A leaf plus `count` trainable values at random places; the values start at 0.

    The backward pass forms the gradient of the whole leaf and reads the gradient at those places.
    The control arm therefore saves optimizer state and checkpoint bytes, and no FLOPs.

    Attributes:
      leaf: name of the leaf in the module.
      count: number of scalars that train, from 1 to the leaf's size.
      seed: seed of the draw of the places.
    """

    leaf: str = "kernel"
    count: int = 1
    seed: int = 0

    kind = "sparse"
    nesting = -1  # The values belong to the leaf itself, so the other deltas are around them.
    may_have_zero_gradient = True  # All places of a leaf may be at units that never fire.

    @property
    def modules(self) -> tuple[str, ...]:
        return ()  # `effective` changes the leaf, so no call is wrapped.

    def path(self, leaf: str) -> str:
        return f"{self.module}/{self.kind}_{self.leaf}_{leaf}"

    def leaves(self, base: Shapes) -> dict[str, DeltaLeaf]:
        self.require(base, self.leaf)
        return {
            self.path("values"): DeltaLeaf((self.count,)),
            self.path("places"): DeltaLeaf((self.count,), trains=False, dtype="int32"),
        }

    def initial(self, key: jax.Array, base: Arrays) -> dict[str, jax.Array]:
        size = math.prod(base[f"{self.module}/{self.leaf}"].shape)
        # NumPy specifies this generator bit for bit, so the places survive a change of JAX.
        name = [ord(c) for c in f"{self.module}/{self.leaf}"]
        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self.seed, *name]))
        )
        places = np.sort(generator.choice(size, self.count, replace=False, shuffle=False))
        return {
            self.path("values"): jnp.zeros(self.count),
            self.path("places"): jnp.asarray(places, jnp.int32),
        }

    def effective(self, leaves: Arrays) -> dict[str, jax.Array]:
        target = f"{self.module}/{self.leaf}"
        leaf = jnp.asarray(leaves[target], jnp.float32)
        places, values = leaves[self.path("places")], leaves[self.path("values")]
        flat = leaf.reshape(-1).at[places].add(values)
        return {target: flat.reshape(leaf.shape)}

    def merge(self, leaves: Arrays) -> dict[str, jax.Array]:
        return self.effective(leaves)

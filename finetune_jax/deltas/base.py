"""What a delta is: parameters beside a frozen module, and how they change what it computes."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError

Leaves = Mapping[str, Any]
"""``{leaf path: array or shape struct}``, flat."""


@dataclasses.dataclass(frozen=True)
class DeltaLeaf:
    """One added leaf.

    Attributes:
      shape: of the array.
      trains: False for constants that are part of the delta (PiSSA's first factors, indices).
      lr: factor on the term's learning rate (LoRA+).
      dtype: of the array.
    """

    shape: tuple[int, ...]
    trains: bool = True
    lr: float = 1.0
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Delta:
    """Parameters added to one module of a frozen model.

    A subclass is a frozen dataclass whose fields are static options, so that a plan can hash it and
    an artifact can rebuild it. Its leaves live in the param pytree beside the module's own, named
    ``<module>/<kind>_<leaf>``, so stages, splits, checkpoints and audits treat them like any other.

    Attributes:
      module: path of the module whose call is changed, such as ``block_3/attn/query``.
      nesting: of several deltas at one module, the lower one is nearer to it, whatever the order
        they were written in; equal ones keep that order.
      may_rest: whether its leaves may get no gradient at all and still be no mistake.
    """

    module: str
    kind: ClassVar[str]
    nesting: ClassVar[int] = 1
    may_rest: ClassVar[bool] = False

    def path(self, leaf: str) -> str:
        """Leaf path of one of this delta's leaves."""
        return f"{self.module}/{self.kind}_{leaf}"

    def leaves(self, base: Leaves) -> dict[str, DeltaLeaf]:
        """``{leaf path: DeltaLeaf}``, from the shapes of the base's leaves.

        Raises:
          UserError: the delta does not fit this module.
        """
        raise NotImplementedError

    def initial(self, key: jax.Array, base: Leaves) -> dict[str, jax.Array]:
        """Values of `leaves`; `base` holds the values of the base's leaves."""
        raise NotImplementedError

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the modules whose calls go through `call`."""
        return (self.module,)

    def call(
        self,
        module: Any,
        next_call: Callable[..., Any],
        args: tuple,
        own: Leaves,
        memory: dict[str, Any],
    ) -> Any:
        """What the module returns with the delta in place.

        Args:
          module: the bound Flax module, one of `modules`.
          next_call: the module's own ``__call__``.
          args: its positional arguments; the first is the input.
          own: all leaves by path.
          memory: of one forward pass, to hand values from one module to a later one.
        """
        raise NotImplementedError

    def effective(self, leaves: dict[str, Any]) -> dict[str, Any]:
        """The base leaves this delta replaces before the model runs; none by default."""
        del leaves
        return {}

    def merge(self, leaves: Leaves) -> dict[str, Any]:
        """The base leaves that compute the same without this delta, by path, in f32.

        Raises:
          UserError: no such leaves exist.
        """
        raise UserError(
            f"{self.kind} at {self.module!r} cannot be merged into the base: it adds a computation "
            f"that no kernel of the model can express"
        )

    @property
    def mergeable(self) -> bool:
        """Whether `merge` can succeed."""
        return type(self).merge is not Delta.merge

    def to_json(self) -> dict[str, Any]:
        """Kind and options as plain JSON values."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def require(self, base: Leaves, leaf: str) -> Any:
        """A leaf of the module, or a UserError that names it."""
        path = f"{self.module}/{leaf}"
        if path not in base:
            raise UserError(f"{self.kind}: the module {self.module!r} has no {leaf!r}")
        return base[path]


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """A PRNG key that depends on the leaf path, not on what else is drawn."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def cast(leaf: Any, like: jax.Array) -> jax.Array:
    """The leaf in the compute dtype of an activation."""
    return jnp.asarray(leaf).astype(like.dtype)

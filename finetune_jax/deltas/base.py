"""What a delta is: parameters beside a frozen module, and how they change the module's output."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax.doors import is_door
from finetune_jax.errors import UserError


class Shaped(Protocol):
    """Anything with a shape and a dtype: an array, or a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def dtype(self) -> Any:
        """Type of the scalars."""


Shapes = Mapping[str, Shaped]
"""``{leaf path: array or shape struct}``, flat."""

Arrays = Mapping[str, jax.Array]
"""``{leaf path: array}``, flat."""


@dataclasses.dataclass(frozen=True)
class DeltaLeaf:
    """One added leaf.

    Attributes:
      shape: shape of the array.
      trains: False for an array that is a constant of the delta (the start values that PiSSA
        subtracts, the places of `Sparse`).
      lr: factor on the learning rate of the term that adds the delta (LoRA+).
      dtype: name of the array's dtype.
    """

    shape: tuple[int, ...]
    trains: bool = True
    lr: float = 1.0
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Delta:
    """Parameters added to one module of a frozen model.

    A subclass is a frozen dataclass whose fields are static options, so that a plan can hash the
    delta and an artifact can rebuild the delta. The delta's leaves live in the param pytree beside
    the module's own leaves and are named ``<module>/<kind>_<leaf>``; stages, splits, checkpoints
    and audits therefore treat them like all other leaves.

    A subclass may be defined in another package, at the top level of a module. JSON then names the
    subclass ``package.module:Class``, and reading the JSON imports the module.

    Attributes:
      module: path of the module whose call is changed, such as ``block_3/attn/query``.
      kind: name of the subclass in leaf paths, unique among the deltas of one module.
      nesting: order among several deltas of one module: the delta with the lower number is nearer
        to the module, whatever the order of the terms in the scheme; deltas with equal numbers keep
        the order of the terms.
      may_have_zero_gradient: whether a leaf of the delta may correctly get no gradient in a whole
        run. An audit then accepts that the leaf has not moved.
    """

    module: str
    kind: ClassVar[str]
    nesting: ClassVar[int] = 1
    may_have_zero_gradient: ClassVar[bool] = False

    def path(self, leaf: str) -> str:
        """Leaf path of one of this delta's leaves."""
        return f"{self.module}/{self.kind}_{leaf}"

    def leaves(self, base: Shapes) -> dict[str, DeltaLeaf]:
        """``{leaf path: DeltaLeaf}``, from the shapes of the base's leaves.

        Raises:
          UserError: the delta does not fit this module.
        """
        raise NotImplementedError

    def initial(self, key: jax.Array, base: Arrays) -> dict[str, jax.Array]:
        """Start values of `leaves`; `base` holds the values of the base's leaves."""
        raise NotImplementedError

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the modules whose calls go through `call`."""
        return (self.module,)

    def call(
        self,
        module: nn.Module,
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        leaves: Arrays,
        memory: dict[str, Any],
    ) -> Any:
        """What the module returns with the delta in place.

        Args:
          module: the bound Flax module, one of `modules`.
          next_call: the module's own ``__call__``, or the next delta's `call` around the module.
          args: positional arguments of the call; the first is the input.
          leaves: all leaves of the model and of the deltas, by path.
          memory: values that one module hands to a later module of the same forward pass.
        """
        raise NotImplementedError

    def effective(self, leaves: Arrays) -> dict[str, jax.Array]:
        """The base leaves that this delta replaces before the model runs; none by default."""
        del leaves
        return {}

    def merge(self, leaves: Arrays) -> dict[str, jax.Array]:
        """Base leaves that compute without this delta what `leaves` compute with it, by path, f32.

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
        """Kind and options as plain JSON values; `deltas.from_json` reads them back.

        Raises:
          UserError: a delta of another package whose class is not at the top level of a module.
        """
        return {"kind": self._json_kind, **dataclasses.asdict(self)}

    @property
    def _json_kind(self) -> str:
        cls = type(self)
        if cls.__module__.startswith(f"{__package__}."):
            return self.kind
        name = f"{cls.__module__}:{cls.__qualname__}"
        if not is_door(name):
            raise UserError(
                f"delta {self.kind!r}: the class {name!r} cannot be imported by name; define the "
                f"class at the top level of a module"
            )
        return name

    def require(self, base: Shapes, leaf: str) -> Shaped:
        """A leaf of the module, or a UserError that names the missing leaf."""
        path = f"{self.module}/{leaf}"
        if path not in base:
            raise UserError(f"{self.kind}: the module {self.module!r} has no {leaf!r}")
        return base[path]


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """A PRNG key that depends on the leaf path, and not on other draws from the same key."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def cast(leaf: jax.Array, like: jax.Array) -> jax.Array:
    """The leaf in the compute dtype of an activation."""
    return jnp.asarray(leaf).astype(like.dtype)

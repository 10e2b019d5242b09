"""A staged model with deltas in place: same stages, same call, no change to the model's code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.deltas.adapters import AdaptFormer, Bottleneck
from finetune_jax.deltas.base import Delta
from finetune_jax.deltas.lora import LoRA
from finetune_jax.deltas.prompts import Prompt
from finetune_jax.deltas.scaling import IA3, SSF
from finetune_jax.deltas.sparse import Sparse
from finetune_jax.errors import UserError, nearest
from finetune_jax.models import EVAL, Mode, StagedModel

KINDS: dict[str, type[Delta]] = {
    c.kind: c for c in (LoRA, IA3, SSF, Bottleneck, AdaptFormer, Prompt, Sparse)
}

# Of the largest logit; tests hold every mergeable delta to a tenth of it.
_MERGE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Calls a model with deltas, which wrap the calls of its modules.

    Attributes:
      model: staged module, as published.
      deltas: what is added.
    """

    model: StagedModel
    deltas: tuple[Delta, ...] = ()

    @property
    def nested(self) -> list[Delta]:
        """The deltas from the innermost out, see `Delta.nesting`."""
        return sorted(self.deltas, key=lambda delta: delta.nesting)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in forward order."""
        return self.model.stages

    def apply(
        self,
        variables: dict[str, Any],
        x: jax.Array,
        mode: Mode = EVAL,
        *,
        start: str | None = None,
        stop: str | None = None,
        **options: Any,
    ) -> Any:
        """`StagedModel.__call__` through ``flax.linen.Module.apply``.

        Args:
          variables: ``{"params": base and delta leaves, "batch_stats": …}``.
          x: as for the model.
          mode: as for the model.
          start: first stage to run.
          stop: first stage not to run.
          **options: of ``apply``: ``rngs``, ``mutable``.
        """
        if not self.deltas:
            return self.model.apply(variables, x, mode, start=start, stop=stop, **options)
        leaves = tree.flatten(variables["params"])
        for delta in self.nested:
            leaves |= delta.effective(leaves)
        wrapped: dict[str, list[Delta]] = {}
        for delta in self.nested:
            for module in delta.modules:
                if not isinstance(delta, Sparse):
                    wrapped.setdefault(module, []).append(delta)
        inside: set[str] = set()
        memory: dict[str, Any] = {}

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = "/".join(context.module.path)
            # A subclass that calls its parent's __call__ comes through here twice.
            if context.method_name != "__call__" or path not in wrapped or path in inside:
                return call(*args, **kwargs)
            inside.add(path)
            try:
                current = lambda *a: call(*a, **kwargs)  # noqa: E731
                for delta in wrapped[path]:
                    current = _wrap(delta, context.module, current, leaves, memory)
                return current(*args)
            finally:
                inside.discard(path)

        whole = {**variables, "params": tree.unflatten(leaves)}
        with nn.intercept_methods(intercept):
            return self.model.apply(whole, x, mode, start=start, stop=stop, **options)


def _wrap(delta: Delta, module: Any, call: Any, leaves: dict[str, Any], memory: Any) -> Any:
    return lambda *args: delta.call(module, call, args, leaves, memory)


def from_json(values: dict[str, Any]) -> Delta:
    """Rebuilds a delta from `Delta.to_json`; an unknown kind or option raises UserError."""
    options = dict(values)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"unknown delta {kind!r}.{nearest(str(kind), KINDS)}")
    try:
        return KINDS[kind](**options)
    except TypeError as error:
        raise UserError(f"delta {kind!r}: {error}") from None


def unmergeable(model: StagedModel, deltas: Iterable[Delta]) -> list[Delta]:
    """The deltas that no kernel of the model can express."""
    return [
        delta
        for delta in deltas
        if not delta.mergeable
        # What is part of the leaf itself is standardised with it.
        or (model.standardised(delta.module) and not isinstance(delta, Sparse))
    ]


def merge(
    adapted: Adapted, variables: dict[str, Any], images: Any = None
) -> tuple[dict[str, Any], float]:
    """Folds all deltas into the base.

    Args:
      adapted: model and deltas.
      variables: base and delta leaves.
      images: normalised f32[b, h, w, 3] on which the two are compared; None skips it.

    Returns:
      (variables of the bare model, largest absolute difference of a logit; nan when skipped).

    Raises:
      UserError: a delta that no kernel can express, or logits that differ by more than rounding.
    """
    for delta in unmergeable(adapted.model, adapted.deltas):
        if delta.mergeable:
            raise UserError(
                f"{delta.kind} at {delta.module!r} cannot be merged into the base: that "
                f"convolution standardises its kernel, and what is beside it is not standardised"
            )
    leaves = {p: jnp.asarray(x) for p, x in tree.flatten(variables["params"]).items()}
    own: set[str] = set()
    for delta in adapted.nested:
        own |= delta.leaves(leaves).keys()
        leaves |= delta.merge(leaves)
    merged = {
        "params": tree.unflatten({p: x for p, x in leaves.items() if p not in own}),
        "batch_stats": variables["batch_stats"],
    }
    if images is None:
        return merged, float("nan")
    before = np.asarray(adapted.apply(variables, images))
    difference = float(np.max(np.abs(before - np.asarray(adapted.model.apply(merged, images)))))
    scale = max(float(np.max(np.abs(before))), 1.0)
    if adapted.model.dtype == jnp.float32 and not difference <= _MERGE_TOLERANCE * scale:
        raise UserError(
            f"the merged model is not the same: a logit differs by {difference:.3g} at a scale of "
            f"{scale:.3g}; keep the deltas beside the base"
        )
    return merged, difference

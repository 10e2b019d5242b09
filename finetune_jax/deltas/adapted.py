"""A staged model with deltas in place: same stages, same call, no change to the model's code."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.deltas.base import Arrays, Delta
from finetune_jax.errors import UserError
from finetune_jax.models import EVAL, Mode, StagedModel
from finetune_jax.quantization import Format, dequantize, input_scales, round_inputs, rounded

# As a fraction of the largest logit; tests hold every mergeable delta to a tenth of it.
_MERGE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model whose module calls are wrapped by deltas.

    Attributes:
      model: staged module, without deltas.
      deltas: the deltas around the model's modules.
      formats: (path of a weight, format): the model computes with the values that these weights
        have once they are quantized, see `finetune_jax.quantization.rounded`.
    """

    model: StagedModel
    deltas: tuple[Delta, ...] = ()
    formats: tuple[tuple[str, Format], ...] = ()

    @property
    def nested(self) -> list[Delta]:
        """The deltas from the innermost to the outermost, see `Delta.nesting`."""
        return sorted(self.deltas, key=lambda delta: delta.nesting)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in forward order."""
        return self.model.stages

    def apply(
        self,
        variables: tree.Tree,
        x: Any,
        mode: Mode = EVAL,
        *,
        start: str | None = None,
        stop: str | None = None,
        **options: Any,
    ) -> Any:
        """`StagedModel.__call__` through ``flax.linen.Module.apply``.

        Args:
          variables: ``{"params": base and delta leaves, "batch_stats": …}``; leaves of the base may
            be quantized, see `finetune_jax.quantization`.
          x: input of the model or of the stage `start`, see `StagedModel.__call__`.
          mode: which stages run as in training.
          start: name of the first stage to run.
          stop: name of the first stage not to run.
          **options: ``rngs`` and ``mutable`` of ``flax.linen.Module.apply``.

        Returns:
          What ``flax.linen.Module.apply`` returns.
        """
        params = rounded(variables["params"], dict(self.formats))
        variables = {**variables, "params": dequantize(params)}
        inputs = input_scales(params, self.formats)
        if not self.deltas and not inputs:
            return self.model.apply(variables, x, mode, start=start, stop=stop, **options)
        leaves = tree.flatten(variables["params"])
        for delta in self.nested:
            leaves |= delta.effective(leaves)
        changed = {**variables, "params": tree.unflatten(leaves)}
        with nn.intercept_methods(self._interceptor(leaves, inputs)):
            return self.model.apply(changed, x, mode, start=start, stop=stop, **options)

    def _interceptor(
        self, leaves: Arrays, inputs: Mapping[str, jax.Array | None]
    ) -> Callable[..., Any]:
        """Flax's method interceptor, which passes the calls of modules through their deltas.

        The modules of `inputs` (see `quantization.input_scales`) get rounded inputs; their deltas
        do not.
        """
        deltas_at: dict[str, list[Delta]] = {}
        for delta in self.nested:
            for module in delta.modules:
                deltas_at.setdefault(module, []).append(delta)
        running: set[str] = set()
        memory: dict[str, Any] = {}

        def intercept(
            call: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            context: nn.module.InterceptorContext,
        ) -> Any:
            path = "/".join(context.module.path)
            # A subclass that calls its parent's __call__ is intercepted twice for one call.
            found = path in deltas_at or path in inputs
            if context.method_name != "__call__" or not found or path in running:
                return call(*args, **kwargs)
            running.add(path)
            try:
                current: Callable[..., Any] = functools.partial(call, **kwargs)
                if path in inputs:
                    current = _on_rounded(context.module, current, inputs[path])
                for delta in deltas_at.get(path, ()):
                    current = _wrap(delta, context.module, current, leaves, memory)
                return current(*args)
            finally:
                running.discard(path)

        return intercept


def _on_rounded(
    module: nn.Module, call: Callable[..., Any], scale: jax.Array | None
) -> Callable[..., Any]:
    return lambda x, *args: call(round_inputs(module, x, scale), *args)


def _wrap(
    delta: Delta,
    module: nn.Module,
    call: Callable[..., Any],
    leaves: Arrays,
    memory: dict[str, Any],
) -> Callable[..., Any]:
    return lambda *args: delta.call(module, call, args, leaves, memory)


def largest_inputs(adapted: Adapted, variables: tree.Tree, x: Any) -> dict[str, jax.Array]:
    """The largest absolute value among the inputs of each layer, f32[rows] by path of the layer.

    Args:
      adapted: model and deltas.
      variables: as of `Adapted.apply`.
      x: input of the model, with `rows` rows; a row is an image or a text.
    """
    found: dict[str, jax.Array] = {}

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        first = args[0] if args else None
        if context.method_name == "__call__" and _has_rows_of_floats(first):
            largest = jnp.abs(first.reshape(len(first), -1)).max(-1).astype(jnp.float32)
            found["/".join(context.module.path)] = largest
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        adapted.apply(variables, x)
    return found


def _has_rows_of_floats(x: Any) -> TypeGuard[jax.Array]:
    is_array = isinstance(x, jax.Array) and x.ndim > 1
    return is_array and jnp.issubdtype(x.dtype, jnp.floating)


def unmergeable(model: StagedModel, deltas: Iterable[Delta]) -> list[Delta]:
    """The deltas that no kernel of the model can express."""
    return [
        delta
        for delta in deltas
        if not delta.mergeable
        # A delta that changes the leaf itself, and wraps no call, is standardised with the leaf.
        or (model.standardised(delta.module) and delta.modules)
    ]


def merge(
    adapted: Adapted, variables: tree.Tree, inputs: Any = None
) -> tuple[dict[str, Any], float]:
    """Folds all deltas into the base.

    Args:
      adapted: model and deltas.
      variables: base and delta leaves, and ``batch_stats``. Quantized leaves are dequantized.
      inputs: inputs of the model, such as normalised images f32[batch, height, width, 3], on which
        the logits of both forms are compared; None skips the comparison.

    Returns:
      (variables of the model without deltas, largest absolute difference of a logit; nan when
      skipped).

    Raises:
      UserError: a delta that no kernel can express, or logits that differ by more than rounding.
    """
    for delta in unmergeable(adapted.model, adapted.deltas):
        if delta.mergeable:
            raise UserError(
                f"{delta.kind} at {delta.module!r} cannot be merged into the base: this "
                f"convolution standardises its kernel, and the delta's product is not standardised"
            )
    params = dequantize(variables["params"])
    leaves = {p: jnp.asarray(x) for p, x in tree.flatten(params).items()}
    added: set[str] = set()
    for delta in adapted.nested:
        added |= delta.leaves(leaves).keys()
        leaves |= delta.merge(leaves)
    merged = {
        "params": tree.unflatten({p: x for p, x in leaves.items() if p not in added}),
        "batch_stats": variables["batch_stats"],
    }
    if inputs is None:
        return merged, float("nan")
    before = np.asarray(adapted.apply(variables, inputs))
    after = np.asarray(adapted.model.apply(merged, inputs))
    difference = float(np.max(np.abs(before - after)))
    scale = max(float(np.max(np.abs(before))), 1.0)
    if adapted.model.dtype == jnp.float32 and not difference <= _MERGE_TOLERANCE * scale:
        raise UserError(
            f"the merged model computes other logits: a logit differs by {difference:.3g}, and the "
            f"largest logit is {scale:.3g}; keep the deltas beside the base"
        )
    return merged, difference

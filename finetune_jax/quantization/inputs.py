"""Inputs of layers rounded to 8 bits, for layers whose weights are in a format that says so.

A layer computes with the values that its inputs have as int8, in the dtype of the model: so the
outputs are those of a product of integers, up to the rounding of sums, and the time is not. A
gradient passes through the rounding as if there were none; without that, the gradient of what
trains below a rounded input would be 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune_jax import tree
from finetune_jax.quantization.formats import FORMATS, Format
from finetune_jax.quantization.leaves import quantized_leaves

_LARGEST = 127
STEPS = 127.5
"""Number of steps of int8 from 0 to the largest input, as qwix counts the steps."""


def input_scales(
    params: tree.Tree, formats: Iterable[tuple[str, Format]] = ()
) -> dict[str, jax.Array | None]:
    """The modules whose inputs are rounded, and the scales of the inputs.

    Args:
      params: nested dict, in which leaves may be quantized.
      formats: (path of a weight, format) of the weights that are rounded and not quantized.

    Returns:
      By the path of a module its static scale f32[], or None for scales of the inputs themselves.
    """
    names = {p: n for p, n in quantized_leaves(params).items() if n in FORMATS}
    names = {path: name for path, name in names.items() if FORMATS[name].inputs}
    leaves = tree.flatten(params) if names else {}
    found = {path.rpartition("/")[0]: leaves.get(f"{path}/input_scale") for path in names}
    found |= {path.rpartition("/")[0]: None for path, f in formats if f.inputs == "dynamic"}
    return found


def round_inputs(module: nn.Module, x: jax.Array, scale: jax.Array | None) -> jax.Array:
    """The values of a layer's inputs in 8 bits.

    Args:
      module: the layer. The inputs of a convolution have a scale for each image, and those of
        another layer a scale for each row of features.
      x: inputs; integers, such as the numbers of tokens, stay as they are.
      scale: static scale f32[], or None.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if scale is None:
        import qwix

        axes = (0,) if isinstance(module, nn.Conv) else range(x.ndim - 1)
        values = qwix.dequantize(qwix.quantize(x, jnp.int8, channelwise_axes=axes))
    else:
        scale = scale.astype(x.dtype)
        values = jnp.clip(jnp.round(x / scale), -_LARGEST - 1, _LARGEST) * scale
    return jax.lax.stop_gradient(values) + (x - jax.lax.stop_gradient(x))

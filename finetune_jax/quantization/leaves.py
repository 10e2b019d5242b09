"""Trees in which some leaves are quantized.

In the place of a quantized leaf, such as ``block_0/attn/query/kernel``, a tree has two leaves: the
codes under the name of the format, and the scales, such as ``block_0/attn/query/kernel/int8`` and
``block_0/attn/query/kernel/scale``, and for ``w8a8_static`` the scale of the layer's inputs, as
``input_scale``. So everything that works on leaves (checksums, the audit,
checkpoints, shardings, weight files) works on quantized leaves too, bit by bit. `dequantize` gives
the leaves that a model reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax import tree
from finetune_jax.quantization.formats import FORMATS, Format

_SCALE, _INPUT_SCALE = "scale", "input_scale"
_FORMAT_OF = {**FORMATS, **{f"{name}_odd": f for name, f in FORMATS.items() if f.bits == 4}}
"""The format by the name of the codes."""


def is_weight(path: str, leaf: Any) -> bool:
    """Whether a leaf is stored in few bits where a format is asked for.

    These are the kernels of dense layers and convolutions and the tables of embeddings of tokens.
    Biases, norms and position embeddings have few values and keep their dtype.

    Args:
      path: path of the leaf.
      leaf: an array or a shape struct.
    """
    return path.rsplit("/", 1)[-1] in ("kernel", "embedding") and len(leaf.shape) >= 2


def quantize_leaf(
    path: str, leaf: jax.Array, format_: Format, input_scale: float | jax.Array = 1.0
) -> Any:
    """What a tree has in the place of a leaf: codes and scales, or the leaf.

    Args:
      path: path of the leaf.
      leaf: f32 array for which `is_weight` is true.
      format_: how to store the leaf.
      input_scale: scale of the inputs of the layer, for a format with static inputs.

    Returns:
      ``{name of the codes: codes, "scale": scales}``, with static inputs also ``input_scale``
      f32[]; the leaf itself if it would not be smaller.
    """
    encode = format_.encode_rows if path.endswith("embedding") else format_.encode
    shapes = jax.eval_shape(encode, leaf)
    if tree.nbytes(shapes) >= tree.nbytes(leaf):
        return leaf
    given = {_INPUT_SCALE: jnp.float32(input_scale)} if format_.inputs == "static" else {}
    return {**encode(leaf), **given}


def dequantize(params: tree.Tree) -> tree.Tree:
    """The tree with every quantized leaf as the f32 array that its codes stand for.

    Args:
      params: a nested dict; without a quantized leaf, it is returned as it is.
    """
    changed = {}
    for key, value in params.items():
        if not isinstance(value, Mapping):
            continue
        name = _codes_of(value)
        new = (
            _FORMAT_OF[name].decode(name, value[name], value[_SCALE]) if name else dequantize(value)
        )
        if new is not value:
            changed[key] = new
    return {**params, **changed} if changed else params


def rounded(params: tree.Tree, formats: Mapping[str, Format]) -> tree.Tree:
    """The tree with the values that some leaves have once they are quantized.

    The values are exactly those of ``dequantize(quantize(params, formats))``. A gradient passes
    through the rounding as if there were none (the straight-through estimator, Bengio et al. 2013,
    https://arxiv.org/abs/1308.3432), so that training with rounded weights moves f32 weights.

    Args:
      params: nested dict of arrays; leaves that are quantized already stay as they are.
      formats: format of each leaf to round, by its path.
    """
    if not formats:
        return params

    def round_leaf(path: str, leaf: jax.Array) -> Any:
        if path not in formats:
            return leaf
        values = dequantize({"leaf": quantize_leaf(path, leaf, formats[path])})["leaf"]
        # The difference is exactly 0, and its gradient is that of the leaf.
        return jax.lax.stop_gradient(values) + (leaf - jax.lax.stop_gradient(leaf))

    return tree.map_with_path(round_leaf, params)


def quantized_leaves(params: tree.Tree, prefix: str = "") -> dict[str, str]:
    """Returns ``{path of a quantized leaf: name of its codes}``.

    Args:
      params: a nested dict.
      prefix: path that is put before every path of the result.
    """
    found: dict[str, str] = {}
    for key, value in params.items():
        if not isinstance(value, Mapping):
            continue
        path = f"{prefix}/{key}" if prefix else key
        name = _codes_of(value)
        found |= {path: name} if name else quantized_leaves(value, path)
    return found


def _codes_of(branch: Mapping[str, Any]) -> str:
    """The name of the codes, if a branch of a tree is a quantized leaf; else empty."""
    names = branch.keys() - {_SCALE, _INPUT_SCALE}
    name = next(iter(names)) if len(names) == 1 and _SCALE in branch else ""
    return name if name in _FORMAT_OF else ""


def quantize(
    params: tree.Tree,
    formats: Mapping[str, Format],
    input_scales: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The tree with codes and scales in the place of some leaves.

    Args:
      params: nested dict of f32 arrays.
      formats: format of each leaf to quantize, by its path.
      input_scales: scale of a layer's inputs by the path of its weight, for formats with static
        inputs.
    """
    scales = input_scales or {}

    def store(path: str, leaf: jax.Array) -> Any:
        known = path in formats
        return quantize_leaf(path, leaf, formats[path], scales.get(path, 1.0)) if known else leaf

    return tree.map_with_path(store, params)

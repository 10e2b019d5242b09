"""Weights in few bits: formats, and trees of leaves of which some are quantized."""

from finetune_jax.quantization.formats import FORMATS, Format, parse_format
from finetune_jax.quantization.leaves import (
    dequantize,
    is_weight,
    quantize_leaf,
    quantized_leaves,
)

__all__ = [
    "FORMATS",
    "Format",
    "dequantize",
    "is_weight",
    "parse_format",
    "quantize_leaf",
    "quantized_leaves",
]

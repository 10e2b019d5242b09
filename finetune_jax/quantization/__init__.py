"""Weights in few bits: formats, and trees of leaves of which some are quantized."""

from finetune_jax.quantization.formats import FORMATS, Format, parse_format
from finetune_jax.quantization.leaves import (
    dequantize,
    is_weight,
    quantize,
    quantize_leaf,
    quantized_leaves,
    rounded,
)
from finetune_jax.quantization.rules import Rule, formats_by_leaf, parse_rules

__all__ = [
    "FORMATS",
    "Format",
    "Rule",
    "dequantize",
    "formats_by_leaf",
    "is_weight",
    "parse_format",
    "parse_rules",
    "quantize",
    "quantize_leaf",
    "quantized_leaves",
    "rounded",
]

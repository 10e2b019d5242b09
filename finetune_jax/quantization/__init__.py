"""Weights in few bits: formats, and trees of leaves of which some are quantized."""

from finetune_jax.quantization.formats import FORMATS, Format, parse_format
from finetune_jax.quantization.inputs import STEPS, input_scales, round_inputs
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
    "STEPS",
    "Format",
    "Rule",
    "dequantize",
    "formats_by_leaf",
    "input_scales",
    "is_weight",
    "parse_format",
    "parse_rules",
    "quantize",
    "quantize_leaf",
    "quantized_leaves",
    "round_inputs",
    "rounded",
]

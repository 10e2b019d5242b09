"""MobileNets as transformers describes them."""

from __future__ import annotations

from typing import Any

from finetune_jax.export.hub.destination import NotThere
from finetune_jax.models import mobilenet_v1, mobilenet_v2
from finetune_jax.models.mobilenet_v1 import MobileNetV1
from finetune_jax.models.mobilenet_v2 import MobileNetV2

_SMALLEST = 8
"""Smallest number of channels of a layer in transformers' classes."""


def version_1(module: MobileNetV1, size: int) -> tuple[str, str, dict[str, Any]]:
    """Class, origin of the names and settings of MobileNet for images of `size` pixels a side."""
    if module.layout != mobilenet_v1.LAYOUT or int(32 * module.multiplier) < _SMALLEST:
        raise NotThere(f"its MobileNet has the layout of the paper, at least {_SMALLEST} channels")
    side = -(-size // 2)
    for _, stride in module.layout:
        if stride == 2 and side % 2:
            # Keras pads only the bottom and the right, TensorFlow's rule then pads all borders.
            raise NotThere(
                f"of images of {size} pixels it pads other borders; expected a multiple of 32"
            )
        side //= stride
    settings = {
        "model_type": "mobilenet_v1",
        "depth_multiplier": module.multiplier,
        "min_depth": _SMALLEST,
        "tf_padding": True,
        "hidden_act": "relu6",
        "layer_norm_eps": 1e-3,
        "image_size": size,
    }
    return "MobileNetV1ForImageClassification", "transformers", settings


def version_2(module: MobileNetV2, size: int) -> tuple[str, str, dict[str, Any]]:
    """Class, origin of the names and settings of MobileNetV2 for images of any size."""
    if module.layout != mobilenet_v2.LAYOUT or not module.capped or module.expand_first:
        raise NotThere("its MobileNetV2 has the layout and the activations of the paper")
    settings = {
        "model_type": "mobilenet_v2",
        "depth_multiplier": module.multiplier,
        "tf_padding": module.same,
        "hidden_act": "relu6",
        "layer_norm_eps": module.epsilon,
        "classifier_dropout_prob": module.dropout,
        "image_size": size,
    }
    return "MobileNetV2ForImageClassification", "transformers", settings

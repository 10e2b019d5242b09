"""MobileNets against torchvision, timm, transformers and Keras."""

from __future__ import annotations

import dataclasses

import torch  # noqa: F401 - timm needs it first
from harness import Case, randomise
from keras_reference import KERAS, KerasReference, save_h5, save_keras

from finetune_jax.models.mobilenet_v2 import LAYOUT, MobileNetV2

_TENSORFLOW = {"same": True, "epsilon": 1e-3}
_PLACES = [(run, i) for run, (_, _, count, _) in enumerate(LAYOUT) for i in range(count)]


def _torchvision():
    import torchvision.models.mobilenetv2 as mobilenet

    return randomise(mobilenet.MobileNetV2(num_classes=7, width_mult=0.35, dropout=0))


def _timm():
    import timm

    return randomise(timm.create_model("mobilenetv2_035", num_classes=7))


def _transformers(same: bool):
    import transformers

    config = transformers.MobileNetV2Config(
        depth_multiplier=0.35, num_labels=7, tf_padding=same, image_size=64
    )
    return randomise(transformers.MobileNetV2ForImageClassification(config))


def _keras(size: int):
    import keras

    return KerasReference(
        keras.applications.MobileNetV2(
            input_shape=(size, size, 3), alpha=0.35, weights=None, classes=7,
            classifier_activation=None,
        )
    )  # fmt: skip


def _model(**options):
    return lambda: MobileNetV2(7, 0.35, **options)


_KERAS_CASE = Case(
    "mobilenet_v2/keras/h5", "mobilenet_v2", "keras", lambda: _keras(64), _model(**_TENSORFLOW),
    {
        "stem": "Conv1_relu", "block_0": "expanded_conv_project_BN",
        "block_1": "block_1_project_BN", "block_2": "block_2_add", "block_9": "block_9_add",
        "block_13": "block_13_project_BN", "block_16": "block_16_project_BN",
    },
    save=save_h5, image_size=64, **KERAS,
)  # fmt: skip

CASES = [
    Case(
        "mobilenet_v2/torchvision", "mobilenet_v2", "torchvision", _torchvision, _model(),
        {"stem": "features.0", **{f"block_{i}": f"features.{i + 1}" for i in range(17)}},
        image_size=64, gradients=True, training=True,
    ),
    Case(
        "mobilenet_v2/timm", "mobilenet_v2", "timm", _timm, _model(),
        {"stem": "bn1", **{f"block_{n}": f"blocks.{r}.{i}" for n, (r, i) in enumerate(_PLACES)}},
        image_size=64,
    ),
    *(
        Case(
            f"mobilenet_v2/transformers/{name}", "mobilenet_v2", "transformers",
            lambda same=same: _transformers(same), _model(same=same, epsilon=1e-3),
            {
                "stem": "mobilenet_v2.conv_stem.first_conv", "block_0": "mobilenet_v2.conv_stem",
                **{f"block_{i + 1}": f"mobilenet_v2.layer.{i}" for i in range(16)},
            },
            image_size=65 if same else 64,
        )
        for name, same in (("tf_padding", True), ("torch_padding", False))
    ),
    _KERAS_CASE,
    dataclasses.replace(
        _KERAS_CASE, name="mobilenet_v2/keras/keras_odd", build=lambda: _keras(65),
        save=save_keras, image_size=65,
    ),
]  # fmt: skip

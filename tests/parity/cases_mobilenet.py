"""MobileNets, SqueezeNet and ResNet-8 against torchvision, timm, transformers and Keras."""

from __future__ import annotations

import dataclasses

import torch
from harness import Case, randomise
from keras_reference import KERAS, KerasReference, save_h5, save_keras

from finetune_jax.models.mobilenet_v1 import MobileNetV1
from finetune_jax.models.mobilenet_v2 import LAYOUT, MobileNetV2
from finetune_jax.models.resnet8_mlperf import ResNet8
from finetune_jax.models.squeezenet import SqueezeNet

_TENSORFLOW = {"same": True, "epsilon": 1e-3}
_PLACES = [(run, i) for run, (_, _, count, _) in enumerate(LAYOUT) for i in range(count)]


def _torchvision():
    import torchvision.models.mobilenetv2 as mobilenet

    return randomise(mobilenet.MobileNetV2(num_classes=7, width_mult=0.35))


# In 17 blocks of random weights, normalisation by the batch amplifies rounding a hundredfold.
_SHORT = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2))


def _short():
    import torchvision.models.mobilenetv2 as mobilenet

    model = mobilenet.MobileNetV2(
        7, 0.35, inverted_residual_setting=[list(run) for run in _SHORT], dropout=0
    )
    stem, *blocks, top = model.features
    # The layer after the blocks has the number of the published network.
    idle = [torch.nn.Identity() for _ in range(17 - len(blocks))]
    model.features = torch.nn.Sequential(stem, *blocks, *idle, top)
    return randomise(model)


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


def _transformers_v1():
    import transformers

    config = transformers.MobileNetV1Config(depth_multiplier=0.25, num_labels=7, image_size=64)
    return randomise(transformers.MobileNetV1ForImageClassification(config))


def _keras_v1():
    import keras

    return KerasReference(
        keras.applications.MobileNet(
            input_shape=(64, 64, 3), alpha=0.25, weights=None, classes=7,
            classifier_activation=None,
        )
    )  # fmt: skip


def _keras_resnet8():
    """The network of the benchmark, with its names of layers."""
    from keras import Model, layers

    def conv(number, width, size, stride, x):
        name = f"conv2d_{number}" if number else "conv2d"
        return layers.Conv2D(width, size, strides=stride, padding="same", name=name)(x)

    def norm(number, x):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        return layers.BatchNormalization(name=name)(x)

    inputs = layers.Input((32, 32, 3))
    x = layers.ReLU(name="act_stem")(norm(0, conv(0, 16, 3, 1, inputs)))
    y = layers.ReLU()(norm(1, conv(1, 16, 3, 1, x)))
    y = norm(2, conv(2, 16, 3, 1, y))
    x = layers.ReLU(name="act_0")(layers.Add()([x, y]))
    for block, width, first in ((1, 32, 3), (2, 64, 6)):
        y = layers.ReLU()(norm(first - (block - 1), conv(first, width, 3, 2, x)))
        y = norm(first + 1 - (block - 1), conv(first + 1, width, 3, 1, y))
        shortcut = conv(first + 2, width, 1, 2, x)
        x = layers.ReLU(name=f"act_{block}")(layers.Add()([shortcut, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return KerasReference(Model(inputs, layers.Dense(7, name="dense")(x)))


def _squeezenet():
    import torchvision

    return randomise(torchvision.models.squeezenet1_0(num_classes=7))


_FIRES = (3, 4, 5, 7, 8, 9, 10, 12)


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
        image_size=64, gradients=True,
    ),
    Case(
        "mobilenet_v2/torchvision/training", "mobilenet_v2", "torchvision", _short,
        _model(layout=_SHORT),
        {"stem": "features.0", **{f"block_{i}": f"features.{i + 1}" for i in range(5)}},
        image_size=64, training=True,
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
    Case(
        "mobilenet_v1/keras/h5", "mobilenet_v1", "keras", _keras_v1, lambda: MobileNetV1(7, 0.25),
        {"stem": "conv1_relu", **{f"block_{i}": f"conv_pw_{i + 1}_relu" for i in range(13)}},
        save=save_h5, image_size=64, **KERAS,
    ),
    Case(
        "mobilenet_v1/transformers", "mobilenet_v1", "transformers", _transformers_v1,
        lambda: MobileNetV1(7, 0.25),
        {
            "stem": "mobilenet_v1.conv_stem",
            **{f"block_{i}": f"mobilenet_v1.layer.{2 * i + 1}" for i in range(13)},
        },
        image_size=64, gradients=True,
    ),
    Case(
        "resnet8_mlperf/keras/h5", "resnet8_mlperf", "keras", _keras_resnet8, lambda: ResNet8(7),
        {"stem": "act_stem", "block_0": "act_0", "block_1": "act_1"}, save=save_h5, **KERAS,
    ),
    Case(
        "squeezenet/torchvision", "squeezenet", "torchvision", _squeezenet, lambda: SqueezeNet(7),
        {"stem": "features.2", **{f"block_{i}": f"features.{n}" for i, n in enumerate(_FIRES)}},
        # 22 pixels before the second pooling: its last windows cross the border.
        image_size=96, gradients=True,
    ),
]  # fmt: skip

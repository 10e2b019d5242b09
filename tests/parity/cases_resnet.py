"""ResNets against torchvision, timm and transformers."""

from __future__ import annotations

import torch  # noqa: F401 - timm needs it first
from harness import Case, randomise

from finetune_jax.models.resnet import ResNet

_BLOCKS = {f"layer{i}_block{j}": f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in range(2)}
_BASIC = {"bottleneck": False, "widths": (64, 128, 256, 512)}


def _torchvision(block: str, depths: tuple[int, ...]):
    import torchvision.models.resnet as resnet

    return randomise(resnet.ResNet(getattr(resnet, block), list(depths), num_classes=7))


def _timm(**options: int):
    import timm

    block = timm.models.resnet.Bottleneck
    return randomise(timm.models.resnet.ResNet(block, (1, 1, 2, 1), num_classes=7, **options))


def _transformers(kind: str, sizes: tuple[int, ...], **options: bool):
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=list(sizes),
        depths=[1, 2, 1, 1],
        layer_type=kind,
        num_labels=7,
        **options,
    )
    return randomise(transformers.ResNetForImageClassification(config))


def _present(depths: tuple[int, ...], names: dict[str, str]) -> dict[str, str]:
    return {s: n for s, n in names.items() if int(s[-1]) < depths[int(s[5]) - 1]}


_TRANSFORMERS_STAGES = {
    "stem": "resnet.embedder",
    "layer1_block0": "resnet.encoder.stages.0.layers.0",
    "layer2_block0": "resnet.encoder.stages.1.layers.0",
    "layer2_block1": "resnet.encoder.stages.1.layers.1",
    "layer4_block0": "resnet.encoder.stages.3",
}

CASES = [
    Case(
        "resnet/torchvision/18", "resnet", "torchvision",
        lambda: _torchvision("BasicBlock", (2, 2, 2, 2)),
        lambda: ResNet((2, 2, 2, 2), num_classes=7, **_BASIC),
        {"stem": "maxpool", **_BLOCKS}, image_size=96, gradients=True, training=True,
    ),
    Case(
        "resnet/torchvision/bottleneck", "resnet", "torchvision",
        lambda: _torchvision("Bottleneck", (2, 1, 1, 1)),
        lambda: ResNet((2, 1, 1, 1), True, 7),
        {"stem": "maxpool", **_present((2, 1, 1, 1), _BLOCKS)}, image_size=64,
    ),
    Case(
        "resnet/timm/bottleneck", "resnet", "torchvision", _timm,
        lambda: ResNet((1, 1, 2, 1), True, 7),
        {"stem": "maxpool", **_present((1, 1, 2, 1), _BLOCKS)}, image_size=64,
    ),
    # resnext50_32x4d and wide_resnet50_2, with fewer blocks.
    Case(
        "resnet/timm/resnext", "resnet", "torchvision",
        lambda: _timm(cardinality=32, base_width=4),
        lambda: ResNet((1, 1, 2, 1), True, 7, groups=32, base_width=4),
        {"stem": "maxpool", **_present((1, 1, 2, 1), _BLOCKS)}, image_size=64, gradients=True,
    ),
    Case(
        "resnet/timm/wide", "resnet", "torchvision", lambda: _timm(base_width=128),
        lambda: ResNet((1, 1, 2, 1), True, 7, base_width=128),
        {"stem": "maxpool", **_present((1, 1, 2, 1), _BLOCKS)}, image_size=64,
    ),
    Case(
        "resnet/transformers/bottleneck", "resnet", "transformers",
        lambda: _transformers("bottleneck", (32, 64, 96, 128)),
        lambda: ResNet((1, 2, 1, 1), True, 7, (32, 64, 96, 128), 16),
        _TRANSFORMERS_STAGES, image_size=64,
    ),
    Case(
        "resnet/transformers/stride_first", "resnet", "transformers",
        lambda: _transformers("bottleneck", (32, 64, 96, 128), downsample_in_bottleneck=True),
        lambda: ResNet((1, 2, 1, 1), True, 7, (32, 64, 96, 128), 16, stride_first=True),
        _TRANSFORMERS_STAGES, image_size=64,
    ),
    Case(
        "resnet/transformers/basic", "resnet", "transformers",
        lambda: _transformers("basic", (16, 32, 48, 64)),
        lambda: ResNet((1, 2, 1, 1), False, 7, (16, 32, 48, 64), 16),
        _TRANSFORMERS_STAGES, image_size=64,
    ),
]  # fmt: skip

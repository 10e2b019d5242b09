"""VGG networks, narrow ones, against torchvision, timm and Keras."""

from __future__ import annotations

import torch
from harness import Case, randomise

from finetune_jax.models.vgg import DEPTHS, VGG

_WIDTHS = (4, 8, 12, 16, 24)
_HIDDEN = (40, 48)


def _layers(depth: int) -> list[int | str]:
    """The table of layers in the form of both torch projects: widths, and M for a pooling."""
    return [
        item
        for width, count in zip(_WIDTHS, DEPTHS[depth], strict=True)
        for item in (*[width] * count, "M")
    ]


def _torchvision(depth: int, norms: bool):
    from torchvision.models import vgg

    features = vgg.make_layers(_layers(depth), batch_norm=norms)
    with torch.device("meta"):  # the published head alone has a hundred million weights
        model = vgg.VGG(features, num_classes=7, init_weights=False, dropout=0.0)
        model.classifier[0] = torch.nn.Linear(_WIDTHS[-1] * 49, _HIDDEN[0])
        model.classifier[3] = torch.nn.Linear(*_HIDDEN)
        model.classifier[6] = torch.nn.Linear(_HIDDEN[1], 7)
    model.classifier.to_empty(device="cpu")
    return randomise(model)


def _timm(depth: int, norms: bool):
    import timm

    norm = torch.nn.BatchNorm2d if norms else None
    return randomise(timm.models.vgg.VGG(_layers(depth), 7, mlp_ratio=1 / 64, norm_layer=norm))


def _ours(depth: int, norms: bool, hidden: tuple[int, int] = _HIDDEN):
    return lambda: VGG(DEPTHS[depth], 7, norms, _WIDTHS, hidden)


def _stages(depth: int, norms: bool, **last: str) -> dict[str, str]:
    found, position = {}, -1
    for i, count in enumerate(DEPTHS[depth], 1):
        position += count * (2 + norms) + 1
        found[f"block{i}"] = f"features.{position}"
    return {**found, **last}


_FC = {"fc1": "classifier.1", "fc2": "classifier.4"}

CASES = [
    Case(
        "vgg/torchvision/16", "vgg16", "torchvision", lambda: _torchvision(16, False),
        _ours(16, False), _stages(16, False, **_FC), image_size=64, gradients=True,
    ),
    Case(
        "vgg/torchvision/16_bn", "vgg16_bn", "torchvision", lambda: _torchvision(16, True),
        _ours(16, True), _stages(16, True, **_FC), image_size=64, training=True,
    ),
    Case(
        # A grid of 8x8 is pooled to 7x7 overlapping cells.
        "vgg/torchvision/19", "vgg19", "torchvision", lambda: _torchvision(19, False),
        _ours(19, False), _stages(19, False, **_FC), image_size=256,
    ),
    Case(
        "vgg/timm/16_bn", "vgg16_bn", "timm", lambda: _timm(16, True),
        _ours(16, True, (64, 4096)), _stages(16, True), image_size=64,
    ),
    Case(
        "vgg/timm/19", "vgg19", "timm", lambda: _timm(19, False),
        _ours(19, False, (64, 4096)), _stages(19, False), image_size=224,
    ),
]  # fmt: skip

"""Names and shapes of the convolutional families at their full sizes, without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
torchvision = pytest.importorskip("torchvision", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)

from harness import assert_shapes  # noqa: E402

Build = Callable[[], Any]


def _timm(name: str) -> Build:
    return lambda: timm.create_model(name)


def _torchvision(name: str) -> Build:
    return lambda: torchvision.models.get_model(name)


def _resnet(depth: int) -> Build:
    from finetune_jax.models.resnet import DEPTHS

    depths, bottleneck = DEPTHS[depth]
    config = {} if bottleneck else {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
    return lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(depths=list(depths), num_labels=1000, **config)
    )


def _bit(depth: int) -> Build:
    from finetune_jax.models.bit import DEPTHS

    # The classifier of transformers' class does not know the factor on widths: x1 only.
    config = transformers.BitConfig(depths=list(DEPTHS[depth]), num_labels=1000)
    return lambda: transformers.BitForImageClassification(config)


def _convnext(kind: str, size: str) -> Build:
    from finetune_jax.models.convnext import SIZES

    depths, widths = SIZES[size]
    config = getattr(transformers, f"{kind}Config")(
        depths=list(depths), hidden_sizes=list(widths), num_labels=1000
    )
    return lambda: getattr(transformers, f"{kind}ForImageClassification")(config)


_VGG = ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
_BIT = ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")
_CONVNEXT = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
_CONVNEXT_V2 = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")

_NEXT = ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
_WIDE = ("wide_resnet50_2", "wide_resnet101_2")

CASES: list[tuple[str, str, Build]] = [
    *((name, "torchvision", _torchvision(name)) for name in (*_NEXT, *_WIDE)),
    *((name, "torchvision", _timm(name)) for name in (*_NEXT, *_WIDE)),
    *(
        (f"convnext_{size}", "torchvision", _torchvision(f"convnext_{size}"))
        for size in ("tiny", "small", "base", "large")
    ),
    *((f"resnet{d}", "torchvision", _torchvision(f"resnet{d}")) for d in (18, 34, 50, 101, 152)),
    *((f"resnet{d}", "torchvision", _timm(f"resnet{d}")) for d in (18, 34, 50, 101, 152)),
    *((f"resnet{d}", "transformers", _resnet(d)) for d in (18, 34, 50, 101, 152)),
    *((name, "torchvision", _torchvision(name)) for name in _VGG),
    *((name, "timm", _timm(name)) for name in _VGG),
    *((f"bit_r{size}", "timm", _timm(f"resnetv2_{size}_bit")) for size in _BIT),
    *((f"bit_r{d}x1", "transformers", _bit(d)) for d in (50, 101)),
    *((f"convnext_{size}", "timm", _timm(f"convnext_{size}")) for size in _CONVNEXT),
    *((f"convnextv2_{size}", "timm", _timm(f"convnextv2_{size}")) for size in _CONVNEXT_V2),
    *((f"convnext_{s}", "transformers", _convnext("ConvNext", s)) for s in _CONVNEXT),
    *((f"convnextv2_{s}", "transformers", _convnext("ConvNextV2", s)) for s in _CONVNEXT_V2),
]


@pytest.mark.parametrize(
    ("name", "origin", "reference"),
    CASES,
    ids=[f"{n}-{o}-{i}" for i, (n, o, _) in enumerate(CASES)],
)
def test_every_tensor_has_its_leaf_and_every_leaf_its_tensor(name, origin, reference):
    with torch.device("meta"):
        state = {n: tuple(t.shape) for n, t in reference().state_dict().items()}
    assert_shapes(name, origin, state)

"""Vision Transformers against timm."""

from __future__ import annotations

import torch  # noqa: F401 - timm needs it first
from harness import Case, randomise

from finetune_jax.models.vit import ViT

_SMALL = {"width": 48, "depth": 3, "heads": 3, "patch": 8}
_BLOCKS = {f"block_{i}": f"blocks.{i}" for i in range(3)}


def _timm(**options):
    import timm

    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=7, **options
    )
    return randomise(model)


CASES = [
    Case(
        "vit/timm/token", "vit", "timm", _timm, lambda: ViT(num_classes=7, **_SMALL),
        {**_BLOCKS, "norm": "norm"}, gradients=True,
    ),
]  # fmt: skip

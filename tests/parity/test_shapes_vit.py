"""Names and shapes of Vision Transformers and Mixers at their full sizes, without values."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
torchvision = pytest.importorskip("torchvision", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)

from harness import assert_shapes  # noqa: E402

from finetune_jax.models.vit import SIZES  # noqa: E402

_LONG = {
    "ti": "tiny",
    "s": "small",
    "m": "medium",
    "b": "base",
    "l": "large",
    "h": "huge",
    "g": "giant",
}


def _timm(name, **options):
    return lambda: timm.create_model(name, **options)


def _hub(kind, config, size, patch, image, **options):
    """The reference, whose names transformers turns into those of its files when it saves them."""
    width, depth, heads = SIZES[size]
    options = {"intermediate_size": 4 * width, "num_labels": 1000} | options

    def build():
        settings = getattr(transformers, config)(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
            patch_size=patch, image_size=image, **options,
        )  # fmt: skip
        return getattr(transformers, kind)(settings)

    return build


def _dinov2_hub(size, registers):
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    gated = {"use_swiglu_ffn": True} if size == "g" else {}
    return _hub(f"{kind}Model", f"{kind}Config", size, 14, 518, **gated)


_VITS = [
    *(("ti", 16), ("s", 8), ("s", 16), ("s", 32), ("b", 8), ("b", 16), ("b", 32)),
    *(("l", 14), ("l", 16), ("l", 32), ("h", 14)),
]

# Name, origin, reference, whether it has our head.
CASES = [
    *(
        (f"vit_{s}{p}", "timm", _timm(f"vit_{_LONG[s]}_patch{p}_224", num_classes=1000), True)
        for s, p in _VITS
    ),
    *(
        (f"vit_{s}{p}", "transformers",
         _hub("ViTForImageClassification", "ViTConfig", s, p, 224), True)
        for s, p in (("ti", 16), ("b", 16), ("b", 32), ("l", 16), ("h", 14))
    ),
    *(
        (f"deit_{s}16", "timm", _timm(f"deit_{_LONG[s]}_patch16_224"), True)
        for s in ("ti", "s", "b")
    ),
    *(
        (f"deit_{s}16_distilled", "timm_distilled",
         _timm(f"deit_{_LONG[s]}_distilled_patch16_224"), False)
        for s in ("ti", "s", "b")
    ),
    *(
        (f"deit_{s}16_distilled", "transformers_deit",
         _hub("DeiTForImageClassificationWithTeacher", "DeiTConfig", s, 16, 224), False)
        for s in ("ti", "s", "b")
    ),
    *(
        (f"deit3_{s}{p}", "timm", _timm(f"deit3_{_LONG[s]}_patch{p}_224"), True)
        for s, p in (("s", 16), ("m", 16), ("b", 16), ("l", 16), ("h", 14))
    ),
    *(
        (f"vit_{s}{p}_torchvision", "torchvision",
         lambda name=f"vit_{s}_{p}": torchvision.models.get_model(name), True)
        for s in ("b", "l") for p in (16, 32)
    ),
    *(
        (f"dinov2_{s}14", "timm", _timm(f"vit_{_LONG[s]}_patch14_dinov2"), False)
        for s in ("s", "b", "l", "g")
    ),
    *(
        (f"dinov2_{s}14{'_reg' * r}",
         f"transformers_dinov2{'_with_registers' * r}{'_giant' * (s == 'g')}",
         _dinov2_hub(s, r), False)
        for r in (False, True) for s in ("s", "b", "l", "g")
    ),
    *(
        (f"clip_vit_{s}{p}", "timm",
         _timm(f"vit_{_LONG[s]}_patch{p}_clip_quickgelu_224", num_classes=classes), True)
        for s, p, classes in (("b", 32, 512), ("b", 16, 512), ("l", 14, 768))
    ),
    *(
        (f"clip_vit_{s}{p}", "transformers_clip",
         _hub("CLIPVisionModelWithProjection", "CLIPVisionConfig", s, p, 224,
              projection_dim=classes), True)
        for s, p, classes in (("b", 32, 512), ("b", 16, 512), ("l", 14, 768))
    ),
    ("siglip_b16", "timm", _timm("vit_base_patch16_siglip_224"), False),
    ("siglip_l16", "timm", _timm("vit_large_patch16_siglip_256"), False),
    ("siglip_so400m14", "timm", _timm("vit_so400m_patch14_siglip_224"), False),
    *(
        (f"siglip_{s}{p}", "transformers_siglip",
         _hub("SiglipVisionModel", "SiglipVisionConfig", s, p, image, **options), False)
        for s, p, image, options in (
            ("b", 16, 224, {}), ("l", 16, 256, {}),
            ("so400m", 14, 224, {"intermediate_size": 4304}),
        )
    ),
    *(
        (f"mixer_{s}{p}", "timm", _timm(f"mixer_{s}{p}_224"), True)
        for s in ("s", "b", "l") for p in (16, 32)
    ),
]  # fmt: skip


def _state(reference):
    with torch.device("meta"):
        module = reference()
    state = module.state_dict()
    if isinstance(module, transformers.PreTrainedModel):
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(module, state)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("name", "origin", "reference", "headed"), CASES,
    ids=[f"{name}-{origin}" for name, origin, *_ in CASES],
)  # fmt: skip
def test_every_tensor_has_its_leaf_and_every_leaf_its_tensor(name, origin, reference, headed):
    assert_shapes(name, origin, _state(reference), headed=headed)

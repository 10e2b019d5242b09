"""Vision Transformers against timm and transformers."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import vit_files as files
from harness import Case, randomise, save_safetensors

from finetune_jax.models.vit import ViT

_SMALL = {"width": 48, "depth": 3, "heads": 3, "patch": 8}
_BLOCKS = {f"block_{i}": f"blocks.{i}" for i in range(3)}
_TIMM_STAGES = {"stem": "norm_pre", **_BLOCKS}
_CLIP = {"activation": "gelu_quick", "pre_norm": True, "patch_bias": False, "epsilon": 1e-5}
_SIGLIP = {"pooling": "map", "activation": "gelu_tanh"}


def _ours(**options):
    return lambda: ViT(num_classes=7, **_SMALL | options)


def _timm(kind="vision_transformer.VisionTransformer", **options):
    import timm

    module, name = kind.split(".")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    build = getattr(getattr(timm.models, module), name)
    return randomise(build(**sizes | {"num_classes": 7} | options))


def _case(origin, name, reference, ours, **options):
    """A case of timm's implementation with options equivalent to ours."""
    return Case(
        f"vit/{origin}/{name}", "vit", origin, partial(_timm, **reference), _ours(**ours),
        **{"stages": _TIMM_STAGES} | options,
    )  # fmt: skip


def _clip_timm(**options):
    """The projection of CLIP has no bias, and timm's head has a bias of 0."""
    norm = partial(torch.nn.LayerNorm, eps=1e-5)
    model = _timm(pre_norm=True, act_layer="quick_gelu", norm_layer=norm, **options)
    torch.nn.init.zeros_(model.head.bias)
    return model


def _facebook(giant, registers=4):
    """timm folds the class token's position into the token of models with registers."""
    from timm.layers import SwiGLUPacked

    options = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if giant else {}
    model = _timm(
        reg_tokens=registers, no_embed_class=bool(registers), init_values=1e-5, num_classes=0,
        **options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    token, position = (torch.randn(1, 1, 48, generator=generator) for _ in range(2))
    with torch.no_grad():
        model.cls_token.copy_(token + position)
    model.folded, model.giant = (token, position), giant
    return model


def _transformers(kind, config, **options):
    import transformers

    sizes = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32,
        "patch_size": 8, "num_labels": 7,
    }  # fmt: skip
    settings = getattr(transformers, config)(**sizes | options)
    return randomise(getattr(transformers, kind)(settings))


def _towers(kind, config, **options):
    """A model with an image tower and a text tower."""
    import transformers

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
    sizes["intermediate_size"] = 192
    settings = getattr(transformers, config)(
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        text_config={**sizes, "vocab_size": 50}, **options,
    )  # fmt: skip
    return randomise(getattr(transformers, kind)(settings))


def _hub_stages(prefix="", blocks="layers.{}", stem="embeddings"):
    named = {f"block_{i}": prefix + blocks.format(i) for i in range(3)}
    return {"stem": f"{prefix}{stem}", **named}


_HUB = {"save": files.hub, "restore": files.from_hub()}
_VIT = {"intermediate_size": 192}
_LAYER = "encoder.layer.{}"


def _first_token(module, fed):
    return module(fed).last_hidden_state[:, 0]


def _pooled(module, fed):
    return module(fed).pooler_output


def _image_features(module, fed):
    return getattr(out := module.get_image_features(fed), "pooler_output", out)


def _torchvision():
    from torchvision.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=192,
        num_classes=7,
    )  # fmt: skip
    return randomise(module)


def _save_old_mlp(module, folder):
    """The names of torchvision's published files, which torchvision renames when it loads them."""
    from safetensors.torch import save_file

    renamed = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t.clone()
        for name, t in module.state_dict().items()
    }
    save_file(renamed, folder / "model.safetensors")
    return folder / "model.safetensors"


_TORCHVISION_STAGES = {
    **{f"block_{i}": f"encoder.layers.encoder_layer_{i}" for i in range(3)}, "norm": "encoder.ln",
}  # fmt: skip
_DISTILLED = "deit.VisionTransformerDistilled"
_REGISTERS = {"registers": 4, "positions": "class", "layer_scale": 1.0}

CASES = [
    _case(
        "timm", "token", {}, {}, stages=_TIMM_STAGES | {"norm": "norm"}, gradients=True,
    ),
    Case(
        "vit/timm/tiny", "vit", "timm",
        lambda: _timm(img_size=64, patch_size=16, embed_dim=192, depth=12),
        lambda: ViT(192, 12, 3, 16, 7), {f"block_{i}": f"blocks.{i}" for i in range(12)},
        image_size=64, gradients=True,
    ),
    _case("timm_fc_norm", "gap",
          {"global_pool": "avg", "class_token": False},
          {"pooling": "gap", "norm_pooled": True}, gradients=True),
    _case("timm", "gap_norm_first",
          {"global_pool": "avg", "class_token": False, "fc_norm": False}, {"pooling": "gap"}),
    _case("timm_fc_norm", "gap_beside_class_token",
          {"global_pool": "avg"}, {"pooling": "gap", "class_token": True, "norm_pooled": True}),
    _case("timm", "registers", {"reg_tokens": 4}, {"registers": 4}),
    _case("timm_fc_norm", "registers_gap",
          {"reg_tokens": 4, "class_token": False, "global_pool": "avg", "no_embed_class": True},
          {"registers": 4, "pooling": "gap", "positions": "patches", "norm_pooled": True}),
    _case("timm", "dinov2", {"init_values": 1e-5}, {"layer_scale": 1e-5}, gradients=True),
    _case("timm", "dinov2_registers",
          {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
          {"layer_scale": 1e-5, "registers": 4, "positions": "patches"}),
    _case("timm", "deit3",
          {"init_values": 1e-6, "no_embed_class": True},
          {"layer_scale": 1e-6, "positions": "patches"}, gradients=True),
    _case("timm", "no_qkv_bias", {"qkv_bias": False}, {"qkv_bias": False}, gradients=True),
    Case("vit/torchvision", "vit", "torchvision", _torchvision, _ours(), _TORCHVISION_STAGES,
         gradients=True),
    Case("vit/torchvision/published", "vit", "torchvision", _torchvision, _ours(),
         _TORCHVISION_STAGES, save=_save_old_mlp, export=False),
    _case("timm_distilled", "token", {"kind": _DISTILLED}, {"registers": 1},
          headless=True, logits=lambda m, x: m.forward_features(x)[:, 0], export=False),
    _case("timm", "siglip",
          {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"}, _SIGLIP,
          gradients=True),
    Case("vit/timm/clip", "vit", "timm", _clip_timm, _ours(**_CLIP), _TIMM_STAGES),
    Case("vit/openai/clip", "vit", "openai", _clip_timm, _ours(**_CLIP), _TIMM_STAGES,
         save=files.openai, restore=files.from_openai),
    Case("vit/facebook", "vit", "facebook", partial(_facebook, False, 0), _ours(layer_scale=1.0),
         _TIMM_STAGES, save=files.facebook, restore=files.from_facebook, headless=True),
    *(
        Case(f"vit/{origin}", "vit", origin, partial(_facebook, giant),
             _ours(**_REGISTERS, **feed_forward), _TIMM_STAGES, save=files.facebook,
             restore=files.from_facebook, headless=True)
        for origin, giant, feed_forward in (
            ("facebook_registers", False, {}),
            ("facebook_registers_giant", True, {"activation": "swiglu", "inner": 96}),
        )
    ),
    Case(
        "vit/transformers/classifier", "vit", "transformers",
        lambda: _transformers("ViTForImageClassification", "ViTConfig", **_VIT),
        _ours(epsilon=1e-12), _hub_stages("vit."), **_HUB,
    ),
    Case(
        "vit/transformers/state_dict", "vit", "transformers",
        lambda: _transformers("ViTForImageClassification", "ViTConfig", **_VIT),
        _ours(epsilon=1e-12), _hub_stages("vit."), save=save_safetensors, export=False,
    ),
    Case(
        "vit/transformers/bare", "vit", "transformers",
        lambda: _transformers("ViTModel", "ViTConfig", **_VIT), _ours(epsilon=1e-12),
        _hub_stages(), logits=_first_token, headless=True, save=files.hub, export=False,
    ),
    Case(
        "vit/transformers/deit", "vit", "transformers_deit",
        lambda: _transformers("DeiTForImageClassification", "DeiTConfig", **_VIT),
        _ours(epsilon=1e-12, registers=1), _hub_stages("deit."), **_HUB,
    ),
    Case(
        "vit/transformers/dinov2", "vit", "transformers_dinov2",
        lambda: _transformers("Dinov2ForImageClassification", "Dinov2Config"),
        _ours(layer_scale=1.0, pooling="token_gap"), _hub_stages("dinov2.", _LAYER),
        save=files.hub, restore=files.from_hub("mask_token"),
    ),
    Case(
        "vit/transformers/dinov2_bare", "vit", "transformers_dinov2",
        lambda: _transformers("Dinov2Model", "Dinov2Config"), _ours(layer_scale=1.0),
        _hub_stages("", _LAYER), logits=_pooled, headless=True, save=files.hub, export=False,
    ),
    Case(
        "vit/transformers/dinov2_giant", "vit", "transformers_dinov2_giant",
        lambda: _transformers(
            "Dinov2ForImageClassification", "Dinov2Config", use_swiglu_ffn=True
        ),
        _ours(layer_scale=1.0, pooling="token_gap", activation="swiglu", inner=128),
        _hub_stages("dinov2.", _LAYER), save=files.hub, restore=files.from_hub("mask_token"),
    ),
    Case(
        "vit/transformers/dinov2_registers", "vit", "transformers_dinov2_with_registers",
        lambda: _transformers(
            "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig"
        ),
        _ours(**_REGISTERS, pooling="token_gap"), _hub_stages("dinov2_with_registers.", _LAYER),
        save=files.hub, restore=files.from_hub("mask_token"),
    ),
    Case(
        "vit/transformers/dinov2_registers_bare", "vit", "transformers_dinov2_with_registers",
        lambda: _transformers("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
        _ours(**_REGISTERS), _hub_stages("", _LAYER), logits=_pooled, headless=True,
        save=files.hub, export=False,
    ),
    Case(
        "vit/transformers/clip", "vit", "transformers_clip",
        lambda: _transformers(
            "CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=7, **_VIT
        ),
        _ours(**_CLIP), _hub_stages("vision_model.", "encoder.layers.{}", "pre_layrnorm"),
        logits=lambda m, x: m(x).image_embeds, **_HUB,
    ),
    Case(
        "vit/transformers/clip_towers", "vit", "transformers_clip",
        lambda: _towers("CLIPModel", "CLIPConfig", projection_dim=7), _ours(**_CLIP),
        _hub_stages("vision_model.", "encoder.layers.{}", "pre_layrnorm"),
        logits=_image_features, save=files.hub, export=False,
    ),
    Case(
        "vit/transformers/siglip", "vit", "transformers_siglip",
        lambda: _transformers("SiglipVisionModel", "SiglipVisionConfig", **_VIT),
        _ours(**_SIGLIP), _hub_stages("", "encoder.layers.{}"), logits=_pooled, headless=True,
        save=files.hub, export=False,
    ),
    Case(
        "vit/transformers/siglip_towers", "vit", "transformers_siglip",
        lambda: _towers("SiglipModel", "SiglipConfig"), _ours(**_SIGLIP),
        _hub_stages("vision_model.", "encoder.layers.{}"), logits=_image_features, headless=True,
        save=files.hub, restore=files.from_hub("text_model", "logit_"),
    ),
    _case("vit_jax", "npz", {}, {}, save=files.npz(), restore=files.from_npz),
    _case("big_vision", "npz_gap",
          {"global_pool": "avg", "class_token": False, "fc_norm": False}, {"pooling": "gap"},
          save=files.npz("params/", True), restore=files.from_npz),
    _case("big_vision", "npz_token", {"no_embed_class": True}, {"positions": "patches"},
          save=files.npz("params/", True), restore=files.from_npz),
    _case("big_vision", "npz_inside_an_optimizer",
          {"global_pool": "avg", "class_token": False, "fc_norm": False}, {"pooling": "gap"},
          save=files.npz("opt/target/", True), export=False),
    _case("big_vision", "npz_scanned",
          {"global_pool": "map", "class_token": False}, {"pooling": "map"},
          save=files.npz("params/", True, scanned=True), restore=files.from_npz),
    _case("big_vision_two_towers", "npz_siglip",
          {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh", "num_classes": 0},
          _SIGLIP, headless=True, restore=files.from_npz,
          save=files.npz(
              "params/img/", True, params__t=np.ones(1, np.float32),
              params__txt__head__bias=np.ones(3, np.float32),
          )),
]  # fmt: skip

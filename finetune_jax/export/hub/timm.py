"""Folders that timm opens: ``config.json`` with the architecture and its ``pretrained_cfg``."""

from __future__ import annotations

import functools
from typing import Any

from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.export.formats import Model
from finetune_jax.export.hub.destination import Destination, NotThere, family_of, label_names
from finetune_jax.export.hub.processors import require_image
from finetune_jax.export.hub.transformers import demand
from finetune_jax.files import read_json
from finetune_jax.models import entry_of
from finetune_jax.models.spellings import CATALOGUE
from finetune_jax.models.vit import ViT
from finetune_jax.pretrained import map_of
from finetune_jax.pretrained.maps import maps_of

LIBRARY = "timm"

_ACTIVATIONS = {
    "gelu": "gelu", "gelu_tanh": "gelu_tanh", "gelu_quick": "quick_gelu", "relu": "relu",
    "silu": "silu",
}  # fmt: skip
# An architecture whose dense layers, norms and tokens all come from its arguments.
_ANY_VIT = "vit_base_patch16_224"
# timm's names of the same architecture with the activation of the published weights.
_RENAMED = {
    f"vit_{size}_clip_224": f"vit_{size}_clip_quickgelu_224"
    for size in ("base_patch32", "base_patch16", "large_patch14")
}
_POOLS = {"token": "token", "gap": "avg", "map": "map"}
# Families whose name map of torchvision has timm's names, too.
_SHARED_NAMES = ("resnet",)


def destination(model: Model) -> Destination:
    """The folder of a model that an architecture of timm computes.

    Raises:
      NotThere: timm has no such architecture.
    """
    artifact = model.artifact
    module, name = artifact.model.model, artifact.card["model"]["name"]
    images = require_image(artifact.preprocess)
    if "(" in name or type(module) is not _type_of(name):
        own = ""
    else:
        own = _architectures().get(name, "")
    origin, arguments = _origin(family_of(model)), dict[str, Any]()
    if isinstance(module, ViT) and type(module) is ViT:
        origin = "timm_fc_norm" if module.norm_pooled else "timm"
        arguments = _vit_arguments(module, images.size)
        if own and not _differs(name, module):
            arguments = _new_size(name, module, images.size)
        else:
            own = _ANY_VIT
            demand(module, epsilon=1e-6, patch_bias=not module.pre_norm)
    elif family_of(model) == "mixer" and images.size != entry_of(name).image_size:
        arguments = {"img_size": images.size}
    if family_of(model).startswith("vgg") and images.size != entry_of(name).image_size:
        raise NotThere(f"its VGG takes images of {entry_of(name).image_size} pixels")
    if not own or not origin:
        raise NotThere(f"it has no architecture that computes what {name} computes")
    names = label_names(artifact)
    config = {
        "architecture": own,
        "num_classes": len(names),
        "num_features": _features(artifact.variables),
        "label_names": names,
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            **pretrained_cfg(images),
            "num_classes": len(names),
            "fixed_input_size": isinstance(module, ViT),
            **_ends(family_of(model), origin),
        },
    }
    return Destination(LIBRARY, own, origin, {"config.json": config})


def pretrained_cfg(images: ImagePreprocess) -> dict[str, Any]:
    """The preprocessing as timm's transforms read it; `preprocessing.from_timm` is the inverse."""
    return {
        "input_size": [3, images.size, images.size],
        "interpolation": images.interpolation,
        "crop_pct": images.crop or 1.0,
        "crop_mode": "center" if images.crop else "squash",
        "mean": list(images.mean),
        "std": list(images.std),
    }


def _type_of(name: str) -> type:
    entry = entry_of(name)
    heads = {"head_kind": entry.heads[0]} if entry.heads else {}
    return type(entry.build(num_classes=1, **heads))


@functools.cache
def _architectures() -> dict[str, str]:
    """timm's architecture by model of the catalogue: those whose weights timm publishes, mostly."""
    found = {f"mixer_{size}": f"mixer_{size}_224" for size in ("s16", "s32", "b32", "l32")}
    for name, entry in read_json(CATALOGUE).items():
        for source in entry["weights"]:
            if source.startswith("hf:timm/"):
                base = source.removeprefix("hf:timm/").split(".")[0]
                found.setdefault(name, _RENAMED.get(base, base))
    return found


def _origin(family: str) -> str:
    origins = [name_map.origin for name_map in maps_of(family)]
    if family in _SHARED_NAMES:
        return "torchvision"
    return "timm" if "timm" in origins else ""


def _differs(name: str, module: ViT) -> bool:
    """Whether timm's architecture of this name computes something else.

    Two heads of distilled DeiTs are one here; DINOv2's pooling here may be of both kinds of tokens;
    SigLIP's authors trained with the tanh form of GELU, and timm's architecture has the other.
    """
    return (
        "distilled" in name
        or module.activation in ("swiglu", "gelu_tanh")
        or module.pooling == "token_gap"
        or (name.startswith("dinov2") and module.registers > 0)
    )


def _new_size(name: str, module: ViT, size: int) -> dict[str, Any]:
    """Arguments for another side of the images than that of timm's architecture."""
    own = _architectures()[name].rsplit("_", 1)[-1]
    published = int(own) if own.isdigit() else entry_of(name).image_size
    return {} if size == published else {"img_size": size}


def _vit_arguments(module: ViT, size: int) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer."""
    if module.activation not in _ACTIVATIONS:
        raise NotThere(f"its VisionTransformer here has no activation {module.activation!r}")
    if module.pooling not in _POOLS:
        raise NotThere(f"its VisionTransformer has no pooling {module.pooling!r}")
    token, registers = module.has_class_token, module.registers
    placed = {"all": token + registers, "class": int(token), "patches": 0}[module.positions]
    if placed not in (0, token + registers):
        raise NotThere(f"its VisionTransformer has no positions={module.positions!r} and registers")
    inner = module.inner or 4 * module.width
    ratio = inner / module.width
    if int(module.width * ratio) != inner:  # timm rounds the product down
        ratio = (inner + 0.5) / module.width
    return {
        "img_size": size,
        "patch_size": module.patch,
        "embed_dim": module.width,
        "depth": module.depth,
        "num_heads": module.heads,
        "mlp_ratio": ratio,
        "qkv_bias": module.qkv_bias,
        "init_values": module.layer_scale or None,
        "class_token": token,
        "no_embed_class": placed == 0 and token + registers > 0,
        "reg_tokens": registers,
        "pre_norm": module.pre_norm,
        "global_pool": _POOLS[module.pooling],
        "fc_norm": module.norm_pooled and module.pooling == "gap",
        "act_layer": _ACTIVATIONS[module.activation],
    }


def _ends(family: str, origin: str) -> dict[str, str]:
    """Names of the first convolution and of the classifier, which timm replaces for new tasks."""
    names = map_of(family, origin)
    stems = ("stem/embedding", "stem/conv", "stem/conv1", "block1/conv1")
    first = [names.source(f"params/{stem}/kernel") for stem in stems]
    head = names.source("params/head/kernel") or ""
    found = {
        "first_conv": next((source for source in first if source), ""),
        "classifier": head,
    }
    return {key: source.removesuffix(".weight") for key, source in found.items() if source}


def _features(variables: dict[str, Any]) -> int:
    return int(variables["params"]["head"]["kernel"].shape[0])

"""Reads the sizes of a model from the ``config.json`` that transformers writes beside weights.

Every setting that changes what the network computes becomes an option of our model, or is refused
by its name. Settings of training, such as dropout rates, are not part of a model here. A setting
that the file lacks has the default value of transformers' class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from finetune_jax.errors import UserError

_ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "gelu_quick", "relu": "relu", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
_LARGEST = 10**7


@dataclasses.dataclass(frozen=True)
class Description:
    """What a ``config.json`` says about a model.

    Attributes:
      model: entry of `finetune_jax.models.GENERIC` that the options belong to.
      options: all options that the file decides.
      image_size: side of the images in pixels; 0 for texts, and where the file has none.
    """

    model: str
    options: dict[str, Any]
    image_size: int = 0


class _Settings:
    """The settings of one ``config.json``, and the messages about them."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def wrong(self, key: str, expected: str) -> UserError:
        return UserError(
            f"{self.where}: {key}: expected {expected}, found {self.values.get(key)!r}"
        )

    def number(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; a list of two equal numbers counts as one, as in patches of images."""
        value = self.values.get(key, default)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            raise self.wrong(key, f"a whole number from {least} to {_LARGEST:,}")
        return value

    def numbers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.values.get(key) or default
        if not isinstance(value, list | tuple) or not all(
            isinstance(n, int) and not isinstance(n, bool) and 0 < n <= _LARGEST for n in value
        ):
            raise self.wrong(key, "a list of whole numbers above 0")
        return tuple(value)

    def real(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e3:
            raise self.wrong(key, "a number of at least 0")
        return float(value)

    def truth(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def activation(self, default: str = "gelu", key: str = "hidden_act") -> str:
        value = self.values.get(key, default)
        if value not in _ACTIVATIONS:
            raise self.wrong(key, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def demand(self, key: str, *allowed: Any) -> None:
        """Refuses a setting that our models cannot express; absent and null are the default."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            choice = " or ".join(repr(a) for a in allowed) or "nothing"
            raise UserError(
                f"{self.where}: {key}={value!r} is not supported; expected {choice}. The model "
                f"would compute something else than the one that was trained"
            )


def _text(settings: _Settings) -> Description:
    kind = settings.values["model_type"]
    settings.demand("position_embedding_type", "absolute")
    settings.demand("is_decoder", False)
    settings.demand("add_cross_attention", False)
    settings.demand("pruned_heads", {})
    settings.demand("embedding_size", settings.number("hidden_size", 768))
    bert = kind == "bert"
    vocabulary = 50265 if kind == "roberta" else 30522
    return Description(
        "bert" if bert else "roberta",
        {
            "width": settings.number("hidden_size", 768),
            "depth": settings.number("num_hidden_layers", 12),
            "heads": settings.number("num_attention_heads", 12),
            "inner": settings.number("intermediate_size", 3072),
            "vocabulary": settings.number("vocab_size", vocabulary),
            "positions": settings.number("max_position_embeddings", 512),
            "types": settings.number("type_vocab_size", 2),
            "padding": _padding(settings, 0 if bert else 1),
            "from_padding": not bert,
            "epsilon": settings.real("layer_norm_eps", 1e-12),
            "activation": settings.activation(),
        },
    )


def _padding(settings: _Settings, default: int) -> int:
    if settings.values.get("pad_token_id", default) is None:
        return default
    return settings.number("pad_token_id", default, least=0)


def _vit_sizes(settings: _Settings, patch: int, epsilon: float) -> dict[str, Any]:
    """Settings that all Vision Transformers of transformers share."""
    settings.demand("num_channels", 3)
    return {
        "width": settings.number("hidden_size", 768),
        "depth": settings.number("num_hidden_layers", 12),
        "heads": settings.number("num_attention_heads", 12),
        "patch": settings.number("patch_size", patch),
        "epsilon": settings.real("layer_norm_eps", epsilon),
    }


def _vit(settings: _Settings) -> Description:
    kind = settings.values["model_type"]
    options = {
        **_vit_sizes(settings, 16, 1e-6 if kind == "vit_msn" else 1e-12),
        "inner": settings.number("intermediate_size", 3072),
        "activation": settings.activation(),
        "qkv_bias": settings.truth("qkv_bias", True),
        "class_token": True,
        # The distillation token of DeiT, which every file of DeiTModel has.
        "registers": int(kind == "deit"),
    }
    return Description("vit", options, settings.number("image_size", 224))


def _dinov2(settings: _Settings) -> Description:
    registers = 0
    if settings.values["model_type"] == "dinov2_with_registers":
        registers = settings.number("num_register_tokens", 4, least=0)
    gated = settings.truth("use_swiglu_ffn", False)
    options = _vit_sizes(settings, 16 if registers else 14, 1e-6)
    inner = options["width"] * settings.number("mlp_ratio", 4)
    # Dinov2SwiGLUFFN takes two thirds of the hidden width, as a multiple of 8.
    options |= {
        "inner": (inner * 2 // 3 + 7) // 8 * 8 if gated else inner,
        "activation": "swiglu" if gated else settings.activation(),
        "qkv_bias": settings.truth("qkv_bias", True),
        "layer_scale": settings.real("layerscale_value", 1.0),
        "class_token": True,
        "registers": registers,
        "positions": "class",
    }
    if "Dinov2" in _architecture(settings.values) and "ForImage" in _architecture(settings.values):
        options["pooling"] = "token_gap"
    return Description("vit", options, settings.number("image_size", 224))


def _clip(settings: _Settings) -> Description:
    options = {
        **_vit_sizes(settings, 32, 1e-5),
        "inner": settings.number("intermediate_size", 3072),
        "activation": settings.activation("quick_gelu"),
        "class_token": True,
        "pre_norm": True,
        "patch_bias": False,
    }
    return Description("vit", options, settings.number("image_size", 224))


def _siglip(settings: _Settings) -> Description:
    settings.demand("vision_use_head", True)
    options = {
        **_vit_sizes(settings, 16, 1e-6),
        "inner": settings.number("intermediate_size", 3072),
        "activation": settings.activation("gelu_pytorch_tanh"),
        "class_token": False,
        "pooling": "map",
    }
    return Description("vit", options, settings.number("image_size", 224))


def _resnet(settings: _Settings) -> Description:
    settings.demand("num_channels", 3)
    settings.demand("hidden_act", "relu")
    settings.demand("downsample_in_first_stage", False)
    settings.demand("layer_type", "basic", "bottleneck")
    options = {
        "depths": settings.numbers("depths", (3, 4, 6, 3)),
        "widths": settings.numbers("hidden_sizes", (256, 512, 1024, 2048)),
        "stem_width": settings.number("embedding_size", 64),
        "bottleneck": settings.values.get("layer_type", "bottleneck") == "bottleneck",
        "stride_first": settings.truth("downsample_in_bottleneck", False),
    }
    return Description("resnet", options)


def _convnext(settings: _Settings) -> Description:
    kind = settings.values["model_type"]
    settings.demand("num_channels", 3)
    settings.demand("hidden_act", "gelu")
    # Of the last norm; all other norms have 1e-6.
    if settings.real("layer_norm_eps", 1e-12) > 2e-6:
        raise settings.wrong("layer_norm_eps", "at most 1e-6")
    if kind == "convnext" and settings.real("layer_scale_init_value", 1e-6) <= 0:
        raise settings.wrong("layer_scale_init_value", "a number above 0")
    options = {
        "depths": settings.numbers("depths", (3, 3, 9, 3)),
        "widths": settings.numbers("hidden_sizes", (96, 192, 384, 768)),
        "patch": settings.number("patch_size", 4),
    }
    return Description(kind, options)


_READERS: dict[str, Callable[[_Settings], Description]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _text),
    **dict.fromkeys(("vit", "deit", "vit_msn"), _vit),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _dinov2),
    "clip_vision_model": _clip,
    "siglip_vision_model": _siglip,
    "resnet": _resnet,
    **dict.fromkeys(("convnext", "convnextv2"), _convnext),
}
# Files of an image tower and a text tower: the model type of the image tower.
_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
MODEL_TYPES = (*_READERS, *_TOWERS)
"""Model types that `read` knows."""


def _architecture(values: Mapping[str, Any]) -> str:
    named = values.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def is_description(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a ``config.json`` of transformers, and not of something else."""
    return isinstance(values.get("model_type"), str)


def read(values: Mapping[str, Any], where: str) -> Description:
    """The generic model and the options that a ``config.json`` describes.

    Args:
      values: the parsed file, for which `is_description` holds.
      where: path of the file, for messages.

    Raises:
      UserError: an unknown model type, a setting that no option expresses, or a value of a wrong
        type.
    """
    kind = values["model_type"]
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{where}: model_type {kind!r} is no model of this package; expected one of "
            f"{', '.join(MODEL_TYPES)}"
        )
    settings = _Settings(values, where)
    settings.demand("auto_map")
    settings.demand("quantization_config")
    if kind in _TOWERS:
        tower = values.get("vision_config") or {}
        if not isinstance(tower, dict):
            raise settings.wrong("vision_config", "an object")
        kind = _TOWERS[kind]
        settings = _Settings({**tower, "model_type": kind}, f"{where}: vision_config")
    return _READERS[kind](settings)

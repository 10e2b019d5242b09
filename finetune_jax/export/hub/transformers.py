"""Folders that transformers opens: the inverse of `finetune_jax.pretrained.sizes`.

A setting that no configuration of transformers expresses is refused by its name: the class would
compute something else than the model that was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_jax.data.text import TextPreprocess
from finetune_jax.export.formats import Model
from finetune_jax.export.hub import mobilenets
from finetune_jax.export.hub.destination import Destination, NotThere, label_names
from finetune_jax.export.hub.processors import image_processor, tokenizer_files
from finetune_jax.models.bit import BiT
from finetune_jax.models.convnext import ConvNeXt
from finetune_jax.models.mobilenet_v1 import MobileNetV1
from finetune_jax.models.mobilenet_v2 import MobileNetV2
from finetune_jax.models.resnet import ResNet
from finetune_jax.models.text_encoder import TextEncoder
from finetune_jax.models.vit import ViT

LIBRARY = "transformers"

Described = tuple[str, str, dict[str, Any]]
"""(class of transformers, origin of the names, settings of ``config.json``)."""

ACTIVATIONS = {
    "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "gelu_quick": "quick_gelu", "relu": "relu",
    "silu": "silu",
}  # fmt: skip
_PROBLEMS = {
    "classification": "single_label_classification", "multilabel": "multi_label_classification",
    "regression": "regression",
}  # fmt: skip


def destination(model: Model) -> Destination:
    """The folder of a model whose head a class of transformers has.

    Raises:
      NotThere: transformers has no class that computes what the model computes.
    """
    artifact = model.artifact
    module = artifact.model.model
    describe = _CLASSES.get(type(module))
    if describe is None:
        raise NotThere(f"it has no class for {artifact.card['model']['name']}")
    opener, origin, settings = describe(module, artifact.preprocess.size)
    names = label_names(artifact)
    problem = _PROBLEMS.get(artifact.task.name)
    config = {
        "architectures": [opener],
        **settings,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        **({"problem_type": problem} if problem else {}),
        "dtype": "float32",
    }
    if isinstance(artifact.preprocess, TextPreprocess):
        files, texts = tokenizer_files(artifact.preprocess)
    else:
        files, texts = {"preprocessor_config.json": image_processor(artifact.preprocess)}, {}
    return Destination(LIBRARY, opener, origin, {"config.json": config, **files}, texts)


def demand(module: Any, **allowed: Any) -> None:
    """Raises NotThere for an option of a model with another value than the one that is allowed."""
    for option, value in allowed.items():
        found = getattr(module, option)
        if found != value:
            raise NotThere(f"none of its classes has {option}={found!r} (expected {value!r})")


def encoder(module: TextEncoder) -> dict[str, Any]:
    """Settings of BertModel or RobertaModel."""
    if module.activation not in ACTIVATIONS:
        raise NotThere(f"it has no activation {module.activation!r}")
    return {
        "model_type": "roberta" if module.from_padding else "bert",
        "vocab_size": module.vocabulary,
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.heads,
        "intermediate_size": module.inner or 4 * module.width,
        "hidden_act": ACTIVATIONS[module.activation],
        "max_position_embeddings": module.positions,
        "type_vocab_size": module.types,
        "layer_norm_eps": module.epsilon,
        "pad_token_id": module.padding,
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def _text(module: TextEncoder, size: int) -> Described:
    del size
    if module.pooling != "pooler":
        raise NotThere(
            f"its classifiers read the first token through a dense layer and tanh, and this head "
            f"reads pooling={module.pooling!r}"
        )
    settings = encoder(module)
    if module.from_padding:
        return "RobertaForSequenceClassification", "transformers_classifier", settings
    return "BertForSequenceClassification", "transformers", settings


def _vit(module: ViT, size: int) -> Described:
    demand(module, pre_norm=False, patch_bias=True, norm_pooled=False)
    if not module.has_class_token:
        raise NotThere("none of its classes with this head lacks the class token")
    settings: dict[str, Any] = {
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.heads,
        "patch_size": module.patch,
        "image_size": size,
        "layer_norm_eps": module.epsilon,
        "qkv_bias": module.qkv_bias,
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": 0.0,
    }
    if module.layer_scale or module.pooling == "token_gap":
        return _dinov2(module, settings)
    demand(module, pooling="token", positions="all")
    if module.registers > 1:
        raise NotThere(f"none of its classes with this head has {module.registers} registers")
    if module.activation not in ACTIVATIONS:
        raise NotThere(f"none of its classes with this head has {module.activation!r}")
    settings |= {
        "intermediate_size": module.inner or 4 * module.width,
        "hidden_act": ACTIVATIONS[module.activation],
    }
    if module.registers:
        return "DeiTForImageClassification", "transformers_deit", {"model_type": "deit", **settings}
    return "ViTForImageClassification", "transformers", {"model_type": "vit", **settings}


def _dinov2(module: ViT, settings: dict[str, Any]) -> Described:
    """DINOv2's classifiers read the class token and the mean of the patches."""
    demand(module, pooling="token_gap")
    if not module.layer_scale:
        raise NotThere("its class with pooling 'token_gap' scales the residual branches")
    if module.positions != "class" and (module.registers or module.positions != "all"):
        raise NotThere(f"none of its classes has positions={module.positions!r} and registers")
    inner, gated = module.inner or 4 * module.width, module.activation == "swiglu"
    ratios = [
        ratio
        for ratio in range(1, 17)
        if inner
        == ((ratio * module.width * 2 // 3 + 7) // 8 * 8 if gated else ratio * module.width)
    ]
    if not ratios or not (gated or module.activation in ACTIVATIONS):
        raise NotThere(f"its class has no inner width {inner} with {module.activation!r}")
    kind = "dinov2_with_registers" if module.registers else "dinov2"
    settings |= {
        "model_type": kind,
        "mlp_ratio": 4 if 4 in ratios else ratios[0],
        "use_swiglu_ffn": gated,
        "layerscale_value": module.layer_scale,
        **({} if gated else {"hidden_act": ACTIVATIONS[module.activation]}),
        # The class has a token for masked patches unless its configuration says otherwise.
        **({"num_register_tokens": module.registers} if module.registers else {}),
        **({} if module.registers else {"use_mask_token": False}),
    }
    name = "Dinov2WithRegisters" if module.registers else "Dinov2"
    return f"{name}ForImageClassification", f"transformers_{kind}{'_giant' * gated}", settings


def _resnet(module: ResNet, size: int) -> Described:
    del size
    demand(module, groups=1, base_width=64, conv_bias=False, epsilon=1e-5)
    settings = {
        "model_type": "resnet",
        "depths": list(module.depths),
        "hidden_sizes": list(module.widths),
        "embedding_size": module.stem_width,
        "layer_type": "bottleneck" if module.bottleneck else "basic",
        "downsample_in_bottleneck": module.stride_first,
        "hidden_act": "relu",
    }
    return "ResNetForImageClassification", "transformers", settings


def _convnext(module: ConvNeXt, size: int) -> Described:
    kind = "convnext" if module.version == 1 else "convnextv2"
    settings = {
        "model_type": kind,
        "depths": list(module.depths),
        "hidden_sizes": list(module.widths),
        "num_stages": len(module.depths),
        "patch_size": module.patch,
        "image_size": size,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    }
    name = "ConvNext" if module.version == 1 else "ConvNextV2"
    return f"{name}ForImageClassification", "transformers", settings


def _bit(module: BiT, size: int) -> Described:
    del size
    settings = {
        "model_type": "bit",
        "depths": list(module.depths),
        "hidden_sizes": list(module.widths),
        "embedding_size": module.stem_width,
        "num_groups": module.groups,
    }
    return "BitForImageClassification", "transformers", settings


_CLASSES: dict[type, Callable[[Any, int], Described]] = {
    TextEncoder: _text, ViT: _vit, ResNet: _resnet, ConvNeXt: _convnext, BiT: _bit,
    MobileNetV1: mobilenets.version_1, MobileNetV2: mobilenets.version_2,
}  # fmt: skip

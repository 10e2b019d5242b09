"""Names of models as people type them: those of timm, torchvision, transformers, Keras and papers.

``vit_base_patch16_224``, ``ViT-B/16``, ``google/vit-base-patch16-224`` and ``resnet20`` stand for
models of this package. Some names stand for more: ``convnext_tiny.fb_in1k`` is an architecture with
one of its published sets of weights. Such a name is read only where the catalogue knows the set;
another set is never taken in its place.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError, nearest
from finetune_jax.files import read_json

CATALOGUE = Path(__file__).parent / "catalogue.json"

_SIZES = {
    "tiny": "ti", "ti": "ti", "t": "ti", "small": "s", "s": "s", "base": "b", "b": "b",
    "large": "l", "l": "l", "huge": "h", "h": "h",
}  # fmt: skip
_SIZE = "(tiny|small|base|large|huge|ti|t|s|b|l|h)"
# A pattern of whole names in lower case, and the name of the model; {1} is a group, a size of a ViT
# in our spelling. A result that is no model of the catalogue is no match.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"resnet[-_]?v?1?[-_]?(8|14|20|32|44|56|110)([-_]?cifar(10)?)?", "resnet{1}_cifar"),
    (r"cifar(?:10)?[-_]resnet[-_]?(\d+)", "resnet{1}_cifar"),
    (r"(?:tv[-_])?resnet[-_]?(18|34|50|101|152)", "resnet{1}"),
    (rf"vit_{_SIZE}_patch(\d+)(?:_\d+)?", "vit_{1}{2}"),
    (rf"vit_{_SIZE}_(\d+)", "vit_{1}{2}_torchvision"),
    (rf"vit[-_ ]?{_SIZE}[-_/ ]?(?:patch)?[-_]?(\d+)", "vit_{1}{2}"),
    (rf"deit[-_]{_SIZE}(?:[-_]patch(\d+))?(?:[-_]\d+)?", "deit_{1}16"),
    (rf"dinov2[-_]vit{_SIZE}(\d+)", "dinov2_{1}{2}"),
    (rf"dinov2[-_]vit{_SIZE}(\d+)_reg", "dinov2_{1}{2}_reg"),
    (rf"mlp[-_]?mixer[-_]?{_SIZE}[-_/]?(\d+)", "mixer_{1}{2}"),
    (rf"mixer[-_]?{_SIZE}[-_/](\d+)(?:_\d+)?", "mixer_{1}{2}"),
    (r"mobilenet(?:[-_]?v1)?(?:[-_]1[._]?00?)?(?:_224)?", "mobilenetv1_100"),
    (r"mobilenet[-_]?v1[-_]0?[._]?25(?:_\d+)?", "mobilenetv1_025"),
    (r"mobilenet[-_]?v2(?:[-_]1[._]?00?)?(?:_224)?", "mobilenetv2_100"),
    (r"convnext[-_](atto|femto|pico|nano|tiny|small|base|large)", "convnext_{1}"),
    (r"convnext[-_]?v2[-_](\w+)", "convnextv2_{1}"),
    (r"vgg[-_]?(\d+)(?:[-_]bn)", "vgg{1}_bn"),
    (r"vgg[-_]?(\d+)", "vgg{1}"),
    (r"squeezenet[-_]?v?1[._]0", "squeezenet1_0"),
    (r"bert[-_](base|large)", "bert_{1}_uncased"),
)
# Names of keras.applications: the architectures differ from those of torch, or their inputs do.
_KERAS = {
    "ResNet50": "resnet50", "ResNet101": "resnet101", "ResNet152": "resnet152",
    "VGG16": "vgg16", "VGG19": "vgg19", "MobileNetV2": "mobilenetv2_100",
}  # fmt: skip
# Kinds of models that take their sizes from the folder of the weights, by a part of a hub's name.
# Architectures whose names hold that of another one, or that are often asked for.
_OTHERS = (
    "distilbert", "deberta", "albert", "mobilebert", "squeezebert", "modernbert", "convbert",
    "electra", "mpnet", "xlnet", "longformer", "gpt2", "bart", "swin", "maxvit", "mobilevit",
    "tinyvit", "crossvit", "fastvit", "levit", "davit",
)  # fmt: skip
_KINDS = ("roberta", "bert", "convnextv2", "convnext", "resnet", "vit")


@dataclasses.dataclass(frozen=True)
class Spelled:
    """What a name stands for.

    Attributes:
      model: name of a model of this package.
      weights: source of the set of weights that the name stands for, as in ``pretrained.path``;
        empty for a name of the architecture alone.
    """

    model: str
    weights: str = ""


@functools.cache
def _catalogue() -> dict[str, Any]:
    return read_json(CATALOGUE)


@functools.cache
def _published() -> dict[str, Spelled]:
    """By a name in lower case, the set of weights of the catalogue that has this name."""
    found: dict[str, Spelled] = {}
    for model, entry in _catalogue().items():
        for source in entry["weights"]:
            scheme, _, name = source.partition(":")
            if scheme == "hf":
                spelled = Spelled(model, source)
                for text in (source, name, name.partition("/")[2]):
                    found.setdefault(text.lower(), spelled)
            elif scheme == "keras":
                found.setdefault(source.lower(), Spelled(model, source))
    return found


@functools.cache
def _architectures() -> dict[str, str]:
    """By the name of an architecture in timm, the only model of the catalogue that has it."""
    found: dict[str, set[str]] = {}
    for model, entry in _catalogue().items():
        for source in entry["weights"]:
            if source.startswith("hf:timm/") and "." in source:
                found.setdefault(source.removeprefix("hf:timm/").split(".")[0], set()).add(model)
    return {name: min(models) for name, models in found.items() if len(models) == 1}


def spelled(name: str) -> Spelled | None:
    """What a name stands for; None if it is not known."""
    if name in _catalogue():
        return Spelled(name)
    if name in _KERAS:
        return None  # two models have this name, see `unknown`
    lower = name.strip().lower()
    if lower in _catalogue():
        return Spelled(lower)
    if lower in _published():
        return _published()[lower]
    if lower in _architectures():
        return Spelled(_architectures()[lower])
    return _by_pattern(lower)


def _by_pattern(lower: str) -> Spelled | None:
    for pattern, template in _PATTERNS:
        match = re.fullmatch(pattern, lower)
        if match is None:
            continue
        groups = [group or "" for group in match.groups()]
        for written in ([_SIZES.get(group, group) for group in groups], groups):
            if (model := template.format("", *written)) in _catalogue():
                return Spelled(model)
    return None


def unknown(name: str) -> str:
    """What to do about a name that `spelled` does not know: the end of a message."""
    if name in _KERAS:
        torch = _KERAS[name]
        return (
            f" Two models have this name: {torch}_keras with the weights of Keras, and {torch} "
            f"with those of timm"
        )
    lower = name.strip().lower().removeprefix("hf:")
    base, _, variant = lower.removeprefix("timm/").partition(".")
    if variant and (arch := spelled(base)):
        sets = ", ".join(_catalogue()[arch.model]["weights"])
        return (
            f" It is a set of weights of {arch.model}, and the catalogue has {sets or 'none'}. To "
            f"read it: model.name={arch.model} and pretrained.path=hf:timm/{base}.{variant}; its "
            f"config.json says how images are prepared (data.mean, data.std)"
        )
    if other := next((other for other in _OTHERS if other in lower), ""):
        return (
            f" {other} is another architecture than those of this package; 'finetune-jax models' "
            f"lists all, and bert and roberta read any encoder of their kind from its folder"
        )
    if "/" in lower:
        found = spelled(lower.partition("/")[2])
        kind = next((kind for kind in _KINDS if kind in lower), "")
        if found or kind:
            return (
                f" It may be a set of weights of {found.model if found else kind}: "
                f"model.name={found.model if found and not found.weights else kind or lower} and "
                f"pretrained.path=hf:{name.strip().removeprefix('hf:')}"
            )
    family = re.match(r"[a-z]+", lower)
    alike = [m for m in _catalogue() if family and m.startswith(family[0])]
    near = nearest(name, (*_catalogue(), *_KINDS))
    if not near.startswith(" Did") and alike:
        near = f" Models of the family: {', '.join(alike[:20])}{', …' * (len(alike) > 20)}."
    return f"{near} 'finetune-jax models' lists all"


def published_source(model: str) -> str:
    """The first set of weights that the catalogue names for a model, for ``pretrained.path``.

    Raises:
      UserError: the catalogue names none, or a page where files are and no file.
    """
    sources = _catalogue().get(model, {}).get("weights", [])
    for source in sources:
        if source.startswith(("hf:", "keras:", "package:")) or "#sha256=" in source:
            return str(source)
    where = f"download a file from {sources[0]} and give its path" if sources else "give a path"
    raise UserError(
        f"pretrained.path='published': the catalogue names no file for {model}; {where}, an "
        f"address, package:NAME or hf:OWNER/NAME (see 'finetune-jax models {model}')"
    )

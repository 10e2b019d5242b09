"""Reads the sizes of a model from the names and shapes of a weight file.

Name maps translate the tensors of any origin to leaves of our models, so that there is one reader
for each family. Shapes do not show the number of attention heads, activations, epsilons and
strides.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from finetune_jax.errors import UserError
from finetune_jax.models import GENERIC
from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.layout import LayoutError
from finetune_jax.pretrained.maps import map_of, maps_of
from finetune_jax.pretrained.names import NameMap
from finetune_jax.pretrained.selection import Selection, choose_tensors
from finetune_jax.pretrained.stacked import unstack

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes in our layout, by leaf path without the collection."""

_POOLED_NORM = "norm after the pooling"
"""In place of a leaf: the names show that the final norm follows the pooling of tokens."""


def leaf_shapes(
    source: str,
    family: str,
    selection: Selection = Selection(),  # noqa: B008  # immutable
    name_map: str = "",
) -> dict[str, tuple[int, ...]]:
    """The shapes of a weight file's tensors by the leaves that they fill.

    All name maps that know equally many of the file's names are used, because one name map may
    ignore a stage, such as the pooler, that another name map reads.

    Args:
      source: see `finetune_jax.pretrained.sources.resolve`.
      family: family whose name maps are tried.
      selection: which tensors of the file are the model's, see `load`.
      name_map: the only name map to try, see `load`; empty tries those of the family.

    Raises:
      UserError: the file cannot be read, or has no tensor of the family.
    """
    maps = maps_of(family)
    if name_map:
        maps = (map_of(family, name_map, key="pretrained.name_map"),)

    def belongs(names: NameMap, name: str) -> bool:
        return bool(names.targets(name) or names.targets(f"{name}[0]"))

    with open_weights(source, selection.weights) as weights:
        chosen = choose_tensors(weights, maps, belongs, selection)
        left_out = {*chosen.left_out, *chosen.slots}
        rows = unstack(weights, maps, chosen.naming.short, left_out)
        names = {n: chosen.naming.short(n) for n in rows.names() if n not in left_out}
        unknown = {
            m.origin: sum(not m.targets(n) and m.ignored(n) is None for n in names.values())
            for m in maps
        }
        fewest = min(unknown.values())
        if fewest == len(names):
            raise UserError(f"{source}: no tensor has a name of the family {family!r}")
        found: dict[str, tuple[int, ...]] = {}
        for known in (m for m in maps if unknown[m.origin] == fewest):
            found = shapes_by_leaf(rows, known, names) | found
        return found


def shapes_by_leaf(
    weights: Weights, name_map: NameMap, names: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Shapes by leaf path without the collection.

    Args:
      weights: an open file.
      name_map: name map that knows the names.
      names: ``{name in the file: name without the file's prefix}``.
    """
    found: dict[str, tuple[int, ...]] = {_POOLED_NORM: ()} if name_map.pooled_norm else {}
    for name, short in names.items():
        for target in name_map.targets(short):
            with contextlib.suppress(LayoutError):
                leaf = target.leaf.partition("/")[2]
                found.setdefault(leaf, target.shape(weights.spec(name)[0]))
    return found


def sizes_of(generic: str, shapes: Shapes, where: str) -> dict[str, Any]:
    """Options of a generic model that shapes show; ``image_size`` too for a ViT.

    Args:
      generic: key of `finetune_jax.models.GENERIC`.
      shapes: result of `leaf_shapes`.
      where: path of the file, for messages.

    Raises:
      UserError: a tensor that the sizes are read from is missing or has another shape.
    """
    try:
        return _READERS[generic](shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{where}: the shapes are not those of a model of the kind {generic}: {_reason(error)}"
        ) from None


def sizes_by_shape(weights: Weights, name_map: NameMap, short: Callable[[str], str]) -> str:
    """The name of a generic model with the sizes that shapes show, for a person.

    Args:
      weights: an open file, all of whose names the name map knows.
      name_map: the name map.
      short: function that takes the prefix of the file off a name.

    Returns:
      Such as ``vit(depth=2, heads=…, patch=4, width=24)``; '' if shapes do not show the sizes.
    """
    generic = next((g for g in _READERS if GENERIC[g].family == name_map.family), "")
    try:
        names = {name: short(name) for name in weights.names()}
        sizes = sizes_of(generic, shapes_by_leaf(weights, name_map, names), "") if generic else {}
    except UserError:
        return ""
    sizes.pop("image_size", None)
    hidden = [option for option in HIDDEN.get(generic, ()) if option not in sizes]
    parts = [f"{o}={sizes[o]!r}" if o in sizes else f"{o}=…" for o in sorted([*sizes, *hidden])]
    return f"{generic}({', '.join(parts)})" if sizes else ""


def _reason(error: Exception) -> str:
    return f"no tensor for {error}" if isinstance(error, KeyError) else str(error)


def _depth(shapes: Shapes) -> int:
    blocks = {leaf.split("/")[0] for leaf in shapes if leaf.startswith("block_")}
    return len(blocks)


def _text(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["stem/word/embedding"]
    return {
        "width": width,
        "depth": _depth(shapes),
        "inner": shapes["block_0/mlp_in/kernel"][1],
        "vocabulary": vocabulary,
        "positions": shapes["stem/position/embedding"][0],
        "types": shapes["stem/token_type/embedding"][0],
    }


def _vit(shapes: Shapes) -> dict[str, Any]:
    patch, other, channels, width = shapes["stem/embedding/kernel"]
    if patch != other or channels != 3:
        raise ValueError(f"a patch embedding of the shape {shapes['stem/embedding/kernel']}")
    class_token = "stem/class_token" in shapes
    registers = shapes.get("stem/register_tokens", (1, 0))[1]
    places = shapes["stem/position_embedding"][1]
    inner = shapes["block_0/mlp_out/kernel"][0]
    gated = shapes["block_0/mlp_in/kernel"][1] == 2 * inner
    options = {
        "width": width,
        "depth": _depth(shapes),
        "patch": patch,
        "inner": inner,
        "class_token": class_token,
        "registers": registers,
        "pre_norm": "stem/norm/scale" in shapes,
        "patch_bias": "stem/embedding/bias" in shapes,
        "qkv_bias": "block_0/attn/query/bias" in shapes,
        # The value is replaced by the file's.
        "layer_scale": 1e-5 if "block_0/layer_scale1" in shapes else 0.0,
        "pooling": "token" if class_token else "gap",
    }
    if _POOLED_NORM in shapes:
        options |= {"pooling": "gap", "norm_pooled": True}
    if "map_pool/probe" in shapes:
        options |= {"pooling": "map", "norm_pooled": False}
    if gated:
        options["activation"] = "swiglu"
    kinds = {"all": class_token + registers, "class": int(class_token), "patches": 0}
    square = {kind: n for kind, n in kinds.items() if _is_square(places - n)}
    if len({*square.values()}) != 1:
        raise ValueError(f"{places} position embeddings, which are no square grid of patches")
    options["positions"], before = next(iter(square.items()))
    options["image_size"] = math.isqrt(places - before) * patch
    return options


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _resnet(shapes: Shapes) -> dict[str, Any]:
    if "stem/conv/kernel" not in shapes:
        raise ValueError(
            "there is no single first convolution, as in a ResNet-D, whose three are no model of "
            "this package"
        )
    if shapes["stem/conv/kernel"][:2] != (7, 7):
        raise ValueError("the first convolution is not 7x7; another network has these names")
    stages = {leaf.split("/")[0] for leaf in shapes if leaf.startswith("layer")}
    layers = max(int(stage.split("_block")[0].removeprefix("layer")) for stage in stages)
    depths = tuple(
        sum(stage.startswith(f"layer{i + 1}_block") for stage in stages) for i in range(layers)
    )
    bottleneck = "layer1_block0/conv3/kernel" in shapes
    last = "conv3" if bottleneck else "conv2"
    widths = tuple(shapes[f"layer{i + 1}_block0/{last}/kernel"][-1] for i in range(layers))
    options: dict[str, Any] = {
        "depths": depths,
        "widths": widths,
        "bottleneck": bottleneck,
        "stem_width": shapes["stem/conv/kernel"][-1],
        "conv_bias": "stem/conv/bias" in shapes,
    }
    if bottleneck:
        *_, per_group, inner = shapes["layer1_block0/conv2/kernel"]
        groups = inner // per_group
        base, rest = divmod(inner * 64, widths[0] // 4 * groups)
        if rest:
            raise ValueError(f"an inner width of {inner} in a block of the width {widths[0]}")
        options |= {"groups": groups, "base_width": base}
    return options


def _convnext(shapes: Shapes) -> dict[str, Any]:
    blocks = {leaf.split("/")[0] for leaf in shapes if leaf.startswith("stage")}
    layers = 1 + max(int(block.split("_block")[0].removeprefix("stage")) for block in blocks)
    return {
        "depths": tuple(
            sum(b.startswith(f"stage{i}_block") for b in blocks) for i in range(layers)
        ),
        "widths": tuple(shapes[f"stage{i}_block0/mlp_out/kernel"][-1] for i in range(layers)),
        "patch": shapes["stem/conv/kernel"][0],
    }


_CONVNEXTS = ("convnext", "convnext_1x1", "convnextv2", "convnextv2_1x1")
_READERS: dict[str, Callable[[Shapes], dict[str, Any]]] = {
    "bert": _text, "roberta": _text, "vit": _vit, "resnet": _resnet,
    **dict.fromkeys(_CONVNEXTS, _convnext),
}  # fmt: skip
HIDDEN: dict[str, tuple[str, ...]] = {
    "bert": ("heads",), "roberta": ("heads",), "vit": ("heads",), "resnet": (),
    **dict.fromkeys(_CONVNEXTS, ()),
}  # fmt: skip
"""Options that shapes do not show and that have no usual value, by generic model."""

ASSUMED: dict[str, tuple[str, ...]] = {
    "bert": ("epsilon", "activation", "padding"),
    "roberta": ("epsilon", "activation", "padding"),
    "vit": ("epsilon", "activation"),
    "resnet": ("stride_first", "epsilon"),
    **dict.fromkeys(_CONVNEXTS, ()),
}
"""Options that shapes do not show and that get their usual value, by generic model."""

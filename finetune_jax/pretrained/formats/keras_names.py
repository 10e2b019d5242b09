"""Names of Keras variables: ``<layer>/<variable>``, whichever of its three files they lie in.

Keras 2 files and the ``.h5`` of Keras 3 name their variables; ``.weights.h5`` and ``.keras``
number them in the order in which the layer's class makes them, which is written down here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune_jax.pretrained.formats.limits import MAX_DEPTH

_KERNEL = ("kernel", "bias")
_CELL = ("kernel", "recurrent_kernel", "bias")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
# Class in snake case, or the attribute a layer keeps a layer of its own in.
_VARIABLES: dict[str, tuple[str, ...]] = {
    "dense": _KERNEL,
    "einsum_dense": _KERNEL,
    **dict.fromkeys(_CONVOLUTIONS, _KERNEL),
    **dict.fromkeys((f"{name}_transpose" for name in _CONVOLUTIONS), _KERNEL),
    **dict.fromkeys(("query_dense", "key_dense", "value_dense", "output_dense"), _KERNEL),
    "depthwise_conv1d": ("depthwise_kernel", "bias"),
    "depthwise_conv2d": ("depthwise_kernel", "bias"),
    "separable_conv1d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    **dict.fromkeys(("cell", "lstm_cell", "gru_cell", "simple_rnn_cell"), _CELL),
    "embedding": ("embeddings",),
    "p_re_lu": ("alpha",),
    "rms_normalization": ("scale",),
    "normalization": ("mean", "variance", "count"),
}
_MOVING = ("moving_mean", "moving_variance")
_SCALED = ("layer_normalization", "group_normalization", "batch_normalization")
# Keras 1: `block1_conv1_W_1`. Its running_std holds a variance.
_OLD = re.compile(
    r"_(W|b|kernel|bias|gamma|beta|running_mean|running_std|depthwise_kernel|pointwise_kernel)"
    r"(_\d+)?"
)
_OLD_NAMES = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}


def variable_names(
    kind: str, count: int, config: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """What the numbered variables of a layer are called.

    Args:
      kind: the layer's class in snake case, such as ``conv2d``.
      count: how many variables the file has of it.
      config: the layer's settings, if known: they tell which of gamma and beta a normalisation
        lacks.

    Returns:
      `count` names; the number itself for a variable that kind and count do not determine.
    """
    numbers = tuple(map(str, range(count)))
    if kind not in _SCALED:
        known = _VARIABLES.get(kind, ())
        return known[:count] if count <= len(known) else numbers
    moving = _MOVING if kind == "batch_normalization" else ()
    own = count - len(moving)
    affine = ("gamma", "beta")
    if config is not None:
        affine = tuple(
            name
            for name, switch in (("gamma", "scale"), ("beta", "center"))
            if config.get(switch, True) is True
        )
    if own == len(affine):
        return affine + moving
    return numbers[:own] + moving if 0 <= own < 2 else numbers


def snake_case(name: str) -> str:
    """A class name as Keras writes it into paths: ``PReLU`` is ``p_re_lu``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


class LayerInfo:
    """What a model's JSON says of one layer; the JSON is only looked at, never made into code.

    Attributes:
      kind: class in snake case.
      name: of the layer.
      names: of the layer and the models it lies in, joined by '/'.
      config: its settings.
    """

    def __init__(self, kind: str, name: str, names: str, config: Mapping[str, Any]) -> None:
        self.kind, self.name, self.names, self.config = kind, name, names, config


def layers_of(model: Any) -> dict[str, LayerInfo]:
    """The layers of a model's JSON, by the path of their group in a Keras 3 weight file.

    What is not shaped as Keras writes it is left out.
    """
    found: dict[str, LayerInfo] = {}

    def visit(entry: Any, group: str, names: str, depth: int) -> None:
        config = entry.get("config") if isinstance(entry, dict) else None
        if not isinstance(config, dict) or depth > MAX_DEPTH:
            return
        counts: dict[str, int] = {}
        children: list[tuple[str, Any]] = []
        layers = config.get("layers")
        for layer in layers if isinstance(layers, list) else ():
            kind = snake_case(str(layer.get("class_name", ""))) if isinstance(layer, dict) else ""
            count = counts.get(kind, 0)
            # A Sequential lists its input, which is no layer of its own in the weight file.
            if kind == "input_layer" and entry.get("class_name") == "Sequential":
                continue
            counts[kind] = count + 1
            children.append((f"{group}layers/{kind}" + (f"_{count}" if count else ""), layer))
        children.append((f"{group}layer", config.get("layer")))  # of a wrapper
        for path, layer in children:
            inner = layer.get("config") if isinstance(layer, dict) else None
            if not isinstance(inner, dict):
                continue
            kind, name = snake_case(str(layer.get("class_name", ""))), str(inner.get("name", ""))
            found[path] = LayerInfo(kind, name, f"{names}{name}", inner)
            visit(layer, f"{path}/", f"{names}{name}/", depth + 1)

    visit(model, "", "", 0)
    return found


def named_path(layer: str, path: str) -> str:
    """The name of a variable that its file names: ``layer/…/variable``.

    Args:
      layer: the top-level layer's name, ``block1_conv1``.
      path: the variable's in that layer: ``block1_conv1/kernel:0``, ``sequential/out/bias``, or
        as Keras 1 wrote it, ``block1_conv1_W_1:0``.
    """
    path = re.sub(r":\d+$", "", path)
    old = _OLD.fullmatch(path[len(layer) :]) if path.startswith(layer) else None
    if old:
        return f"{layer}/{_OLD_NAMES.get(old[1], old[1])}"
    parts = path.split("/")
    own = re.compile(re.escape(layer) + r"(_\d+)?")  # Keras 2 told two graphs apart so
    # The models around the layer come first, if at all; the variable is last and no layer.
    at = next((i for i, part in enumerate(parts[:-1]) if own.fullmatch(part)), -1)
    return "/".join([layer, *parts[at + 1 :]])
